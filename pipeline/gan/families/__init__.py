"""One file per family, found by its name: `families.<name>` of params.yaml is `pipeline/gan/families/<name>.py`."""
