"""The services' definitions, and what protoc makes of them: `make protos` after every change."""
