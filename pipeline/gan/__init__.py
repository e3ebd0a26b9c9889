"""The GAN engine: families, one trainer, exact checkpoints. It imports torch, numpy and safetensors only."""
