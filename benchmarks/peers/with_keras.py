"""The chapter's VGG-11 at ratio 4 in Keras 3; KERAS_BACKEND chooses TensorFlow or JAX.

python with_keras.py DATA.npz fp32|bf16
"""

import sys

import keras
import meter
import numpy as np
from keras import layers

path, precision = sys.argv[1:]
if precision == "bf16":
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
data = np.load(path)
net = keras.Sequential([keras.Input(data["images"].shape[1:])])
for convs, channels in ((1, 16), (1, 32), (2, 64), (2, 128), (2, 128)):
    for _ in range(convs):
        net.add(layers.Conv2D(channels, 3, padding="same", activation="relu"))
    net.add(layers.MaxPooling2D(2, 2))
net.add(layers.Flatten())
for _ in range(2):
    net.add(layers.Dense(1024, activation="relu"))
    net.add(layers.Dropout(0.5))
net.add(layers.Dense(10, dtype="float32"))
net.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
assert net.count_params() == int(data["parameters"]), net.count_params()


class Clock(keras.callbacks.Callback):
    """Has the meter wait for a step by reading a weight."""

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        meter.step(lambda: np.asarray(self.model.weights[-1]))


net.fit(data["images"], data["labels"], batch_size=128, epochs=5, verbose=2, callbacks=[Clock()])
