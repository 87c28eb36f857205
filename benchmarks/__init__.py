"""Compares training speed side by side: `make benchmark`, `make benchmark-full`, `make benchmark-gpu`."""
