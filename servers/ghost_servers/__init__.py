"""The four MCP servers of Ghost: browser, file, shell, markitdown. Each also runs alone over stdio."""
