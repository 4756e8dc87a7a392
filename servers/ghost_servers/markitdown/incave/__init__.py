"""The converter: the program that runs in the converter cave, on the interpreter and packages of the hub."""
