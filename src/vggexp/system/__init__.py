"""What does it run on?

- `hardware`: processor, caches, memory and accelerator of this machine
- `memory`: the allocator and the memory use of this process
- `seeds`: where random numbers come from
- `signals`: how Ctrl-C and a cluster's signals stop a run
- `files`: the one safe way to write a file, and to read one that may come from a stranger
- `text`: foreign text on its way to a terminal, a table or a page
- `paths`: where configs, runs and data are
- `terminal`: the one console and its tables
- `torchmetrics`: loads that package without scipy, which would delay each start
"""
