"""The operators' console: server-rendered pages, signed-in, in a process of its own."""
