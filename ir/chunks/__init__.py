"""The parts of `ir.passes.chunk`: the statements of a block, decays added up inside it, and reads of a state in terms of its start."""
