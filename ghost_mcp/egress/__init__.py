"""Network by name: what a cave may reach, the proxy that reaches it, and the record of both."""
