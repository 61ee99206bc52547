"""The parts of `codegen.lower`: block operations, the expressions and statements made of them, folds and their states, and arguments."""
