"""The GAN engine: families of networks and losses, one trainer, exact checkpoints. torch, numpy and safetensors only."""
