"""What watches a server: Prometheus' configuration and alerts, and Grafana's dashboard with what makes it."""
