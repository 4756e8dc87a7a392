"""The hub of Ghost: the one MCP server that aggregates the four and routes every call into a cave."""
