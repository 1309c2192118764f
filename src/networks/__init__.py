"""The networks: plain `nn.Module`s, one file per family.

Every constructor takes `num_classes`, `image_size` (height and width, in pixels) and `channels` (of an image: 3, or 1
for grey ones), and the network fits itself to them. `forward(images (B, channels, S, S)) -> logits (B, num_classes)`.
Attributes describe it:

- `head`: name prefixes of the layers that follow the number of classes or the image size. Where their shape
  differs from that of given weights they start anew; fine-tuning trains them first.
- `training_only`: name prefixes of layers that eval mode does not run, if there are any.
- `torchvision_name`: torchvision's network with the same parameter names, if there is one. Where the shapes agree
  too (at 224 px), its weights load with `load_state_dict` and give the same logits.

A max pool stands before the ReLU of its convolution: the values are the same, and the ReLU sees a quarter of
the elements.
"""
