"""kdstream: streaming speech recognition by distillation from a non-streaming teacher."""
