"""The `postback` command. Each group is one file; heavy imports are made by the command that needs them."""
