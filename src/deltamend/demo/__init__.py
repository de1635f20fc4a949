"""A demonstration on one small real model: damage it by fine-tuning, repair it, measure what came back."""
