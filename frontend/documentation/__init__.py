"""What the server takes and gives, for programs and for people: one table, as OpenAPI and as a page."""
