"""How are weights kept, and read from untrusted files?

- `file`: one file, written with a checksum and read without running what it holds
- `archive`: what `torch.save` writes, read without torch's own loader
- `io`: how Lightning saves and finds the checkpoints of a run
- `pretrained`: a network starts from another's weights
"""
