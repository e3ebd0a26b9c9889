"""Where raw images come from. Each module with a `Config` is a kind, named by `source.kind` in params.yaml."""
