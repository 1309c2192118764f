"""Data sets of other libraries and of one's own, by name: what their items may be, splits, and reopening their runs."""

import inspect
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets

from src.data.augment import RandomCrop, RandomHorizontalFlip
from src.data.catalogue import LACKS, NAMES, HuggingFace, Torchvision
from src.data.source import MapDataset
from src.export import _deployed
from src.predict import predict
from src.runs.folder import RunError
from src.runs.run import open_run
from src.runs.trust import check_config
from tests.conftest import QUICK, train_here

LETTERS = ["a", "b", "c"]


def pixels(index, height=8, width=8, grey=False):
    """uint8 (H, W, 3), or (H, W) if grey, the same for the same index."""
    shape = (height, width) if grey else (height, width, 3)
    return np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)


FORMS = {
    "pil": Image.fromarray,
    "array": lambda array: array,
    "tensor": lambda array: torch.from_numpy(array).permute(2, 0, 1),
    "float": lambda array: torch.from_numpy(array).permute(2, 0, 1) / 255,
    "float array": lambda array: array / 255.0,
}


class Pictures(Dataset):
    """`count` images of three classes in turn."""

    def __init__(self, count=30, form="pil", first=0, **size):
        self.count, self.form, self.first, self.size = count, FORMS[form], first, size
        self.reads = 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.reads += 1
        return self.form(pixels(self.first + index, **self.size)), index % 3


class Named(Pictures):
    classes = LETTERS

    @property
    def targets(self):
        return [index % 3 for index in range(self.count)]


def ready(source, stage=None, **options):
    options = {"num_classes": None, "image_size": 8, "batch_size": 6, "mean": "half"} | options
    data = MapDataset(source=source, **options)
    data.prepare_data()
    data.setup(stage)
    return data


def shown(data, split="train"):
    return data.examples(split, data.size(split))


# Items


@pytest.mark.parametrize("mode", ["memory", "stream"])
@pytest.mark.parametrize("form", FORMS)
def test_images_of_the_right_size_are_taken_as_they_are_in_whatever_form(form, mode):
    data = ready(Pictures(form=form), val_size=0, test_source=Pictures(4, form), mode=mode)
    images, labels = shown(data)
    expected = torch.stack([torch.from_numpy(pixels(i)).permute(2, 0, 1) for i in range(30)])
    assert torch.equal(images, expected)
    assert labels.tolist() == [0, 1, 2] * 10
    assert (data.num_classes, data.classes) == (3, ["0", "1", "2"])


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_images_of_other_sizes_become_squares_of_resize_pixels_cut_from_the_centre(mode):
    source = Pictures(6, height=30, width=20)
    images, _ = shown(ready(source, resize=12, val_size=0, test_source=source, mode=mode))
    for i, image in enumerate(images):
        square = Image.fromarray(pixels(i, 30, 20)[5:25]).resize((12, 12), Image.Resampling.BILINEAR)
        assert (image - torch.from_numpy(np.array(square)).permute(2, 0, 1).int()).abs().max() <= 1


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_gives_the_batches_of_memory_augmented_alike_with_any_number_of_workers(workers):
    augment = {"crop": RandomCrop(2), "flip": RandomHorizontalFlip()}
    options = {"height": 9, "width": 12}
    memory = ready(Pictures(**options), augment=augment)
    stream = ready(Pictures(**options), augment=augment, mode="stream", num_workers=workers)
    assert memory._sets["train"].images.shape == (30, 3, 8, 8)
    pairs = list(zip(memory.train_dataloader(), stream.train_dataloader(), strict=True))
    assert len(pairs) == 4
    for i, pair in enumerate(pairs):
        (images, labels), (others, other_labels) = (
            data.augment(*batch, batch=i) for data, batch in zip((memory, stream), pair, strict=True)
        )
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
    for split in ("val", "test"):
        assert all(torch.equal(a, b) for a, b in zip(shown(memory, split), shown(stream, split), strict=True))


def test_workers_read_the_images_into_memory_in_order():
    images, labels = shown(ready(Pictures(100), num_workers=2, val_size=0, test_source=Pictures(4)))
    assert torch.equal(images, shown(ready(Pictures(100), val_size=0, test_source=Pictures(4)))[0])
    assert labels.tolist() == [i % 3 for i in range(100)]


class Mixed(Pictures):
    """Grey but for one."""

    def __getitem__(self, index):
        return Image.fromarray(pixels(index, grey=index != 4)), index % 3


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_grey_images_keep_one_channel_until_one_is_not_grey(mode):
    options = {"val_size": 0, "test_source": Pictures(4, grey=True), "mode": mode}
    data = ready(Pictures(grey=True), **options)
    if mode == "memory":
        assert data._sets["train"].images.shape == (30, 1, 8, 8)
    assert torch.equal(shown(data)[0][3], torch.from_numpy(pixels(3, grey=True)).expand(3, 8, 8))
    images, _ = shown(ready(Mixed(), **options))
    assert torch.equal(images[3], torch.from_numpy(pixels(3, grey=True)).expand(3, 8, 8))
    assert torch.equal(images[4], torch.from_numpy(pixels(4)).permute(2, 0, 1))
    assert torch.equal(images[29], torch.from_numpy(pixels(29, grey=True)).expand(3, 8, 8))
    images, _ = shown(ready(Mixed(), channels=1, **options))
    assert images.shape == (30, 1, 8, 8)
    assert torch.equal(images[4, 0], torch.from_numpy(np.array(Image.fromarray(pixels(4)).convert("L"))))


# Labels, classes and splits


def test_a_stream_takes_the_labels_that_the_source_lists_and_reads_no_image_for_them():
    source = Named()
    data = ready(source, mode="stream", val_size=0, test_source=Pictures(3))
    assert source.reads == 4  # a look at the first item, and at the labels of three
    assert shown(data)[1].tolist() == [0, 1, 2] * 10
    assert data.classes == LETTERS


@pytest.mark.parametrize(
    "given",
    [
        {"targets": [[1, 2, 3]] * 30},  # as QMNIST's
        {"labels": LETTERS},
        {"labels": None},
        {"targets": [0] * 30, "target_transform": int},
        {"targets": [index % 6 for index in range(30)]},
    ],
    ids=["tables", "names", "none", "transformed", "finer"],
)
def test_lists_that_are_not_the_labels_of_the_items_are_left_alone(given):
    source = Pictures()
    vars(source).update(given)
    data = ready(source, mode="stream", val_size=0, test_source=Pictures(3))
    assert shown(data)[1].tolist() == [0, 1, 2] * 10


def test_classes_may_have_several_names_as_those_of_imagenet():
    source = Pictures()
    source.classes = [("tench", "Tinca tinca"), ("cock",), "hen"]
    assert ready(source).classes == ["tench, Tinca tinca", "cock", "hen"]


def test_classes_of_one_name_are_told_apart_in_every_split():
    source, other = Pictures(), Pictures(9)
    source.classes = other.classes = ["crane", "cock", "crane"]
    assert ready(source, test_source=other).classes == ["crane (0)", "cock", "crane (2)"]


def test_test_and_validation_images_are_carved_stratified_or_come_from_sources_of_their_own():
    data = ready(Pictures(90), test_size=0.1, val_size=9)
    assert [data.size(split) for split in ("train", "val", "test")] == [72, 9, 9]
    assert all(shown(data, split)[1].bincount().tolist() == [count] * 3 for split, count in (("train", 24), ("val", 3)))
    everything = torch.cat([shown(data, split)[0] for split in ("train", "val", "test")])
    assert len(torch.unique(everything, dim=0)) == 90
    assert torch.equal(shown(data, "test")[0], shown(ready(Pictures(90), split_seed=5), "test")[0])
    own = ready(Pictures(), val_source=Pictures(5, first=100), test_source=Pictures(7, first=200))
    assert [own.size(split) for split in ("train", "val", "test")] == [30, 5, 7]
    assert torch.equal(shown(own, "test")[0][6], torch.from_numpy(pixels(206)).permute(2, 0, 1))


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_items_of_several_classes_are_multi_label(mode):
    class Several(Pictures):
        def __getitem__(self, index):
            return super().__getitem__(index)[0], torch.tensor([index % 2, 1, 0])

    data = ready(Several(), mode=mode)
    assert data.multilabel
    assert (data.num_classes, data.class_counts().tolist()) == (3, [*data._sets["train"].labels.sum(0).int().tolist()])
    assert shown(data, "test")[1].shape == (3, 3)


# Mistakes


class Says(Pictures):
    """Pictures whose items are what they are told to be."""

    def __init__(self, item):
        super().__init__()
        self.item = item

    def __getitem__(self, index):
        return self.item


@pytest.mark.parametrize("mode", ["memory", "stream"])
@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"image": 0}, r"Says, the train images: an item must be \(image, label\), not dict"),
        ((torch.full((3, 8, 8), -1.0), 0), r"0\.\.1 \(leave Normalize out .*\), not Tensor float32 \(8, 8, 3\)"),
        ((np.zeros((3, 8, 8), np.uint8), 0), r"an array \(H, W\) or \(H, W, 3\).*, not ndarray uint8 \(3, 8, 8\)"),
        ((np.zeros((8, 8), np.int64), 0), "not ndarray int64"),
        ((Image.new("RGB", (8, 8)), "cat"), r"labels must be integers, or zeros and ones \(K,\), not such as 'cat'"),
        ((Image.new("RGB", (8, 8)), 0.5), r"not torch\.float64 \(30,\); labels\.long\(\)"),
        ((Image.new("RGB", (8, 8)), -1), "they are -1 to -1"),
    ],
)
def test_items_that_are_no_images_with_labels_are_refused(mode, item, message):
    with pytest.raises(ValueError, match=message):
        ready(Says(item), mode=mode)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "stream", "store": "device"}, "data.store=device holds all images"),
        ({"val_source": iter([])}, r"data\.val_source is a list_iterator; it needs __len__ and __getitem__"),
        ({"val_source": Pictures(0)}, "Pictures, the val images: there are no images"),
        ({"test_source": SimpleNamespace}, r"data\.test_source is a type; it needs __len__"),
        ({"num_classes": 5}, r"data\.num_classes=5, but the data set has 3 classes"),
        ({"test_size": 0}, r"data\.test_size=0 of 30 training images"),
    ],
)
def test_mistakes_get_one_clear_message(options, message):
    with pytest.raises(ValueError, match=message):
        ready(Named(), **options)


def test_sources_that_name_their_classes_otherwise_are_refused():
    other = Named()
    other.classes = LETTERS[::-1]
    with pytest.raises(ValueError, match=r"Named, the test images: its classes, \['c', 'b', 'a'\], are not"):
        ready(Named(), test_source=other)


# torchvision's


def parameters(kind):
    """The names of the arguments that a class takes; where it hands on others, also those of its base."""
    names = set()
    for each in (each for each in kind.__mro__ if "__init__" in vars(each)):
        found = inspect.signature(each.__init__).parameters
        names |= set(found)
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in found.values()):
            break
    return names


def test_every_listed_set_of_torchvision_is_there_and_takes_its_split_and_what_it_is_not_said_to_lack():
    for name, splits in NAMES.items():
        accepted = parameters(getattr(datasets, name))
        keyword = "train" if splits["train"] is True else "split"
        assert splits["train"] is None or keyword in accepted, name
        assert {"root", "download"} - accepted == LACKS.get(name, set()), name


def torchvision_set(root, stage=None, **options):
    options = {"name": "FashionMNIST", "num_classes": None, "image_size": 28, "batch_size": 4, "val_size": 0} | options
    data = Torchvision(root=str(root), **options)
    data.prepare_data()
    data.setup(stage)
    return data


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path):
    """FashionMNIST in its official format, with 20 training and 10 test images."""
    for prefix, count in (("train", 20), ("t10k", 10)):
        images = np.stack([pixels(count + i, 28, 28, grey=True) for i in range(count)])
        write_idx(tmp_path / f"FashionMNIST/raw/{prefix}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"FashionMNIST/raw/{prefix}-labels-idx1-ubyte", np.arange(count) % 10)
    return tmp_path


@pytest.mark.parametrize("mode", ["memory", "stream"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_set_of_torchvision_has_its_official_splits_pixels_and_class_names(fashion, mode, channels):
    data = torchvision_set(fashion, download=False, mode=mode, channels=channels)
    assert (data.size("train"), data.size("test"), data.num_classes, data.classes[9]) == (20, 10, 10, "Ankle boot")
    for split, count in (("train", 20), ("test", 10)):
        images, labels = shown(data, split)
        expected = torch.from_numpy(pixels(count + 3, 28, 28, grey=True)).expand(channels, 28, 28)
        assert torch.equal(images[3], expected)
        assert labels.tolist() == [i % 10 for i in range(count)]


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_a_mirrored_sign_is_warned_of_and_a_mirrored_shoe_is_not(name, recwarn):
    options = {"name": name, "num_classes": 10, "image_size": 28, "augment": {"flip": RandomHorizontalFlip()}}
    Torchvision(root="nowhere", **options)
    told = "data.augment.flip mirrors the signs of MNIST: data.augment.flip=null."
    assert [str(each.message) for each in recwarn] == [told] * (name == "MNIST")


def test_a_set_without_official_splits_is_carved():
    data = torchvision_set("nowhere", name="FakeData", image_size=8, options={"size": 40, "image_size": [3, 8, 8]})
    assert [data.size(split) for split in ("train", "val", "test")] == [36, 0, 4]
    assert torch.equal(shown(data)[0][0].unique(), shown(data)[0][0].unique())


def test_files_are_downloaded_only_if_they_are_missing(monkeypatch):
    calls = []

    class Absent(Named):
        def __init__(self, root, train, download):
            super().__init__(12 if train else 6)
            calls.append((root, train, download))
            if not download and len(calls) == 1:
                raise RuntimeError("Dataset not found.")

    monkeypatch.setattr(datasets, "FashionMNIST", Absent)
    data = torchvision_set("files", image_size=8, download=True)
    assert calls == [("files", True, False), ("files", True, True), ("files", False, False)]
    assert (data.size("train"), data.size("test")) == (12, 6)


def test_a_host_that_takes_the_call_and_says_nothing_is_given_up(tmp_path, monkeypatch, silent_host):
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [silent_host])
    with pytest.raises(FileNotFoundError, match=r"data\.download=true: timed out"):
        torchvision_set(tmp_path, download=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "fashionmnist"}, ValueError, "data.name=fashionmnist: .* choose FashionMNIST"),
        ({"name": "CocoDetection"}, ValueError, "torchvision has no such images with classes; choose "),
        ({"options": {"train": True}}, ValueError, "data.options={'train': True}: train is set here; leave it out"),
        ({"options": {"splitt": 1}}, ValueError, "FashionMNIST does not take data.options={'splitt': 1}: .*splitt"),
        ({"name": "EMNIST"}, ValueError, "EMNIST does not take data.options={}: .*split"),
        ({"name": "EMNIST", "options": {"split": "no"}}, ValueError, "balanced"),
        (
            {},
            FileNotFoundError,
            "FashionMNIST is not in .*, and not to be had with data.download=false: .*download=True",
        ),
    ],
)
def test_what_torchvision_does_not_have_is_told(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        torchvision_set(tmp_path, download=False, **options)


# Hugging Face's


def test_without_the_extra_its_name_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"data=huggingface needs datasets: pip install -e '\.\[huggingface\]'"
    ):
        HuggingFace(name="x", num_classes=None, image_size=8).prepare_data()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """`datasets`, which keeps its files in the test's folder."""
    hub = pytest.importorskip("datasets", reason="datasets is an optional extra")
    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(hub.config, "HF_HUB_OFFLINE", False)
    return hub


def table(hub, count, first=0, **more):
    features = hub.Features({"picture": hub.Image(), "kind": hub.ClassLabel(names=LETTERS), **more})
    rows = {
        "picture": [Image.fromarray(pixels(first + i)) for i in range(count)],
        "kind": [i % 3 for i in range(count)],
    }
    return hub.Dataset.from_dict(rows | {name: [0] * count for name in more}, features=features)


def hugging_face(name, **options):
    options = {"num_classes": None, "image_size": 8, "batch_size": 4, "val_size": 0, "mean": "half"} | options
    data = HuggingFace(name=str(name), **options)
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_a_folder_of_save_to_disk_is_read_by_the_types_of_its_columns(hub, tmp_path, mode):
    splits = {"train": table(hub, 12), "validation": table(hub, 4, 50), "test": table(hub, 5, 100)}
    hub.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    data = hugging_face(tmp_path / "saved", mode=mode, num_workers=0)
    assert ([data.size(split) for split in ("train", "val", "test")], data.classes) == ([12, 4, 5], LETTERS)
    assert not hub.config.HF_HUB_OFFLINE, "as it was: a notebook may ask the hub afterwards"
    images, labels = shown(data, "test")
    assert torch.equal(images[4], torch.from_numpy(pixels(104)).permute(2, 0, 1))
    assert labels.tolist() == [0, 1, 2, 0, 1]


def test_a_folder_of_class_folders_and_one_of_parquet_are_read_and_their_test_images_carved(hub, tmp_path):
    for i in range(20):
        folder = tmp_path / f"folders/{LETTERS[i % 2]}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(i)).save(folder / f"{i}.png")
    (tmp_path / "parquet").mkdir()
    table(hub, 20).to_parquet(str(tmp_path / "parquet/train.parquet"))
    for name, classes in (("folders", LETTERS[:2]), ("parquet", LETTERS)):
        data = hugging_face(tmp_path / name)
        assert (data.size("train"), data.size("test"), data.classes) == (18, 2, classes)


def test_columns_that_are_not_plain_are_asked_for(hub, tmp_path):
    table(hub, 12, shape=hub.ClassLabel(names=["round", "square"])).save_to_disk(tmp_path / "saved")
    with pytest.raises(
        ValueError, match=r"data\.label_column=null: .*2 columns of type ClassLabel; choose one of picture, "
    ):
        hugging_face(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"data\.label_column=colour: .*choose one of picture, kind, shape"):
        hugging_face(tmp_path / "saved", label_column="colour")
    assert hugging_face(tmp_path / "saved", label_column="kind").classes == LETTERS


# Runs


def saved(place, target, **more):
    return {"data": {"_target_": "src.data.source.MapDataset", place: {"_target_": target, **more}}}


@pytest.mark.parametrize("place", ["source", "val_source", "test_source"])
def test_a_saved_config_may_build_data_sets_with_transforms_where_they_belong(place):
    nested = {
        "_target_": "torchvision.transforms.v2.Compose",
        "transforms": [{"_target_": "torchvision.transforms.v2.ToImage"}],
    }
    check_config(saved(place, "torchvision.datasets.FakeData", transform=nested))
    check_config(saved(place, "tests.test_data_sources.Pictures"), ["tests"])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("tests.test_data_sources.Pictures", "tests is not among the packages trusted here"),
        ("torch.nn.Linear", "torch is not among the packages trusted here"),
        ("torchvision.transforms.v2.ToImage", "it is no torch.utils.data.Dataset"),
        ("timm.data.ImageDataset", "timm is not among the packages"),
        ("torchvision.datasets.LSUN", r"torchvision\.datasets\.lsun is not among the modules"),
        ("src.data.cifar.datasets.LSUN", r"torchvision\.datasets\.lsun is not among the modules"),
        ("torch.utils.data.datapipes.map.combining.ConcaterMapDataPipe", "torch is not among"),
        ("torch.utils.data.datapipes.iter.routeddecoder.RoutedDecoderIterDataPipe", "torch is not among"),
    ],
)
def test_a_saved_config_may_not_build_what_runs_code_of_files(target, message):
    with pytest.raises(RunError, match=message):
        check_config(saved("source", target))


def test_a_transform_of_a_source_may_be_a_module_only():
    with pytest.raises(RunError, match=r"'data\.source\.transform'.*it is no torch\.nn\.Module"):
        check_config(
            saved("source", "torchvision.datasets.FakeData", transform={"_target_": "torchvision.datasets.FakeData"})
        )


def test_a_run_on_a_streamed_grey_source_trains_opens_predicts_and_exports_with_one_channel(config, tmp_path):
    small = [option for option in QUICK if not option.startswith("data.")]
    source = ["data=dataset", "data.source._target_=tests.test_data_sources.Pictures", "+data.source.grey=true"]
    options = ["+data.source.count=120", "data.mode=stream", "data.channels=1", "data.balance=true", "trusted=[tests]"]
    cfg = config(*small, *source, *options, "data.image_size=16", "data.batch_size=8")
    _, objects, folder = train_here(cfg)
    assert objects["model"].network.features[0].weight.shape == (4, 1, 3, 3)
    run = open_run(folder, trusted=["tests"])
    assert run.config.data.num_classes == 3
    run.datamodule.setup("test")
    images, labels = run.datamodule.examples("test", 12)
    assert (images.shape, labels.bincount().tolist()) == ((12, 1, 16, 16), [4, 4, 4])

    Image.fromarray(images[0, 0].numpy()).save(tmp_path / "grey.png")
    Image.fromarray(images[1, 0].numpy()).convert("RGB").save(tmp_path / "rgb.png")
    here = [f"run={folder}", "trusted=[tests]"]
    (first, second), _ = (
        predict(config(*here, f"input={tmp_path}/*.png", name="predict"))[1][key]
        for key in ("predictions", "unreadable")
    )
    with torch.no_grad():
        expected = run.network(run.datamodule.preprocess(images[:2])).softmax(1)
    got = torch.tensor([list(each["probabilities"].values()) for each in (first, second)])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    deployed = _deployed(run)
    assert deployed.examples["images"].shape == (5, 1, 16, 16)
    torch.testing.assert_close(deployed.network(images[:2]), expected)
