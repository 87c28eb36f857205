"""How does a CPU run the network fast? The layers' own mathematics, in another order.

- `fused`: a block of layers, run a few images at a time
- `packed_conv`: convolutions of small maps, several images side by side
- `winograd`: 3×3 convolutions in fp32 with a quarter of the multiplications, by kernels in C++
- `maxpool`, `batchnorm`: layers and the ReLU behind them at once, by kernels in C++
- `tuning`: measures what is fastest on this machine
- `compiler`: compiles and calls these kernels
"""
