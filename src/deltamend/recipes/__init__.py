"""How a model is fine-tuned: plain training, and the methods of the literature that prevent forgetting while training."""
