"""The small program that runs inside every cave, its wire format, and the hub's end of the link."""
