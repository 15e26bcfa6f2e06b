"""What the Makefile runs besides the services: set-up, stubs, the demo."""
