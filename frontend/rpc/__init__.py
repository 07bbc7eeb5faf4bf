"""The front end that speaks gRPC: services `embedlane.v1` and `tei.v1` over the same core as HTTP."""
