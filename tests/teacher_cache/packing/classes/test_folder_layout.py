"""The class folders of data sets as they are published: the right ones, or one line that says what to do."""

from pathlib import Path

import pytest
from facts import assert_facts

from teacher_cache.errors import ShardError
from teacher_cache.packing.classes.folder_layout import ClassRoot, find_class_root
from teacher_cache.packing.classes.image_folders import ImageFolders

FLAT = [f"{number}.jpg" for number in range(3)]


def paths(layout: str) -> list[str]:
    """Paths of images: "train/{cat dog}/" is two folders of three images each, "{a b}" are alternatives."""
    found = [""]
    for place, part in enumerate(layout.replace("}", "{").split("{")):
        found = [path + one for path in found for one in (part.split() if place % 2 else [part])]
    return [path + name for path in found for name in FLAT]


def find(layouts: list[str], split: str = "", classes: tuple[str, ...] = ()) -> tuple[ClassRoot, list[str]]:
    folders = ImageFolders([path for layout in layouts for path in paths(layout)])
    root = find_class_root(folders, Path("set"), split, classes)
    return root, folders.children(root.prefix)


ORDINARY = "{apple bus car dog elk fox}/"
FOUND = [
    ("classes", ["{cat dog}/"], "", "", ["cat", "dog"]),
    ("Imagenette", ["imagenette2/{train val}/{n01 n02}/"], "train", "imagenette2/train/", ["n01", "n02"]),
    ("ImageNet", ["ILSVRC/Data/CLS-LOC/train/{n01 n02}/"], "", "ILSVRC/Data/CLS-LOC/train/", ["n01", "n02"]),
    ("Tiny-ImageNet", ["train/{n01 n02}/images/", "val/images/"], "train", "train/", ["n01", "n02"]),
    ("Food-101", ["food-101/images/{pie soup}/"], "", "food-101/images/", ["pie", "soup"]),
    ("Caltech-101", ["101_ObjectCategories/{BACKGROUND_Google ant}/"], "", "101_ObjectCategories/", None),
    ("Caltech-256", ["256_ObjectCategories/{001.ak47 002.flag}/"], "", "256_ObjectCategories/", None),
    ("EuroSAT", ["EuroSAT/2750/{Forest River}/"], "", "EuroSAT/2750/", ["Forest", "River"]),
    ("DomainNet", ["{clipart real sketch}/{ant bat cow}/"], "real", "real/", ["ant", "bat", "cow"]),
    ("Office-31", ["{amazon dslr}/images/{bag mug pen}/"], "dslr", "dslr/images/", ["bag", "mug", "pen"]),
    ("Fruits-360", ["{Training Test}/{kiwi pear}/", "test-multiple_fruits/"], "Test", "Test/", ["kiwi", "pear"]),
    (
        "Intel",
        ["seg_{train test}/seg_train/{sea street}/"],
        "seg_train",
        "seg_train/seg_train/",
        ["sea", "street"],
    ),
    ("Roboflow", ["{train valid test}/{a b}/"], "valid", "valid/", ["a", "b"]),
    ("cats and dogs", ["training_set/training_set/{cats dogs}/"], "", "training_set/training_set/", None),
    ("one split", ["data/train/{cat dog}/"], "", "data/train/", ["cat", "dog"]),
    ("path of a split", ["data/{train test}/{cat dog}/"], "data/test", "data/test/", ["cat", "dog"]),
    ("one class in test", ["{train test}/cat/deep/", "train/dog/"], "test", "test/", ["cat"]),
    ("CIFAR-100", [ORDINARY, "train/"], "", "", None),
    ("a class test", [ORDINARY, "test/"], "", "", None),
    ("vehicles", ["{bus car train}/"], "", "", ["bus", "car", "train"]),
    ("trains", ["{bullet_train train_station test_tube}/"], "", "", None),
    ("Places365", ["train/{train_interior arena}/", "val/arena/"], "train", "train/", ["arena", "train_interior"]),
    ("face masks", ["{mask no_mask}/"], "", "", None),
    ("validity", ["{valid invalid}/"], "", "", None),
    ("views of many", ["{a b c d}/{front back}/"], "", "", ["a", "b", "c", "d"]),
    ("hold and release", ["{hold release}/"], "", "", ["hold", "release"]),
    ("seen and unseen", ["{seen unseen}/"], "", "", ["seen", "unseen"]),
    ("series", ["{train_a batch2}/"], "", "", ["batch2", "train_a"]),
    ("one view each", ["{a b}/images/"], "", "", ["a", "b"]),
    ("species", ["Aves/{eagle owl}/", "Fungi/{amanita morel}/"], "", "", ["Aves", "Fungi"]),
    ("images and deeper ones", ["{a b}/", "{a b}/deeper/"], "", "", ["a", "b"]),
]


@pytest.mark.parametrize(
    ("layouts", "split", "prefix", "names"), [row[1:] for row in FOUND], ids=[r[0] for r in FOUND]
)
def test_class_folders_are_found(layouts: list[str], split: str, prefix: str, names: list[str] | None) -> None:
    root, found = find(layouts, split)
    assert root.prefix == prefix
    assert names is None or found == names


REFUSED = [
    (
        "Fruits-360",
        ["{Training Test}/{kiwi pear}/", "test-multiple_fruits/"],
        "",
        ["Test, Training", "--split Training"],
    ),
    ("Intel", ["seg_{train test}/seg_train/{a b}/", "seg_pred/seg_pred/"], "", ["seg_pred", "--split seg_train"]),
    ("STL-10", ["{train test}/{cat dog}/", "unlabeled/"], "", ["test, train, unlabeled", "--split train"]),
    (
        "COCO",
        ["{train2017 val2017 unlabeled2017}/"],
        "",
        ["train2017, unlabeled2017, val2017", "--split train2017"],
    ),
    ("Kaggle dogs and cats", ["{train test1}/"], "", ["test1, train", "--split train"]),
    ("FER-2013", ["{Training PublicTest PrivateTest}/{fear joy}/"], "", ["PrivateTest", "--split Training"]),
    ("Cars", ["cars_{train test}/cars_train/"], "", ["cars_test, cars_train", "--split"]),
    ("Market", ["bounding_box_{train test}/", "query/"], "", ["bounding_box_test", "--split bounding_box_train"]),
    ("Chest X-ray", ["x/{train val test x}/{NORMAL PNEUMONIA}/"], "", ["--split train"]),
    ("Kaggle Chest X-ray", ["x/{train val test}/{a b}/", "x/x/{train val test}/{a b}/"], "", ["--split train"]),
    ("horse2zebra", ["{trainA trainB testA testB}/"], "", ["testA", "--split trainA"]),
    ("GTSRB", ["Train/{0 1 2}/", "{Test Meta}/"], "", ["Meta, Test, Train", "--split Train"]),
    ("PlantVillage", ["{color grayscale segmented}/{apple corn grape}/"], "", ["apple", "--split color"]),
    ("DomainNet", ["{clipart real}/{ant bat cow}/"], "", ["clipart, real", "ant, bat, cow", "--split clipart"]),
    ("MVTec", ["{bottle cable pill}/{train test}/good/"], "", ["bottle, cable, pill", "--split bottle"]),
    ("views of two", ["{cat dog}/{front side}/"], "", ["cat, dog", "front, side", "--classes", "--split cat"]),
    ("a test set with a number", ["{cat dog test1}/"], "", ["'test1'", "--classes"]),
    ("held and unseen sets", ["{train hold unseen}/{a b}/"], "", ["hold, train, unseen", "--split train"]),
    ("splits of a domain", ["{a b}/{train test}/{cat dog}/"], "a", ["--split a/train"]),
    ("Pets", ["{images annotations}/"], "", ["annotations, images", "--split images", "--classes"]),
    ("VOC", ["{JPEGImages SegmentationClass}/"], "", ["JPEGImages, SegmentationClass", "--split JPEGImages"]),
    ("images and masks", ["{images masks}/{cat dog}/"], "", ["--split images"]),
    ("a test set next to two classes", ["{cat dog test}/"], "", ["'test'", "cat, dog, test", "--classes"]),
    ("no such split", ["{train test}/{cat dog}/"], "val", ["'val'", "test, train"]),
]


@pytest.mark.parametrize(("layouts", "split", "facts"), [row[1:] for row in REFUSED], ids=[r[0] for r in REFUSED])
def test_splits_and_parts_are_not_classes(layouts: list[str], split: str, facts: list[str]) -> None:
    with pytest.raises(ShardError) as caught:
        find(layouts, split)
    assert_facts(caught.value, *facts)


def test_the_likely_way_is_offered_first() -> None:
    with pytest.raises(ShardError) as caught:
        find(["{cat dog}/{front side}/"])
    assert str(caught.value).index("--classes") < str(caught.value).index("--split")
    with pytest.raises(ShardError) as caught:
        find(["{bottle cable}/{train test}/good/"])
    assert str(caught.value).index("--split") < str(caught.value).index("--classes")


def test_named_classes_may_have_names_of_splits() -> None:
    assert find(["{train test}/{front back}/"], classes=("test", "train"))[0].prefix == ""
    assert find(["data/{cat dog}/"], classes=("data", "other"))[0].prefix == ""


@pytest.mark.parametrize(
    ("layouts", "split", "training"),
    [
        (["{train test}/{cat dog}/"], "test", ("cat", "dog")),
        (["{train test}/{cat dog}/"], "train", ()),
        (["seg_{train test}/seg_train/{sea street}/", "seg_pred/seg_pred/"], "seg_pred", ("sea", "street")),
        (["{Training Test}/{kiwi pear}/"], "Test", ("kiwi", "pear")),
        (["x/{train2017 val2017}/{a b}/"], "val2017", ("a", "b")),
        (["{train train_extra}/{a b}/", "val/a/"], "val", ("a", "b")),
        (["{clipart real}/{ant bat cow}/"], "real", ()),
    ],
)
def test_the_training_split_gives_the_classes(layouts: list[str], split: str, training: tuple[str, ...]) -> None:
    assert find(layouts, split)[0].training == training


def test_what_was_decided_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    find(["nest/nest/{cat dog}/"])
    assert_facts(capsys.readouterr().err, "'set/nest/nest'")
    find([ORDINARY, "train/"])
    assert_facts(capsys.readouterr().err, "'set'", "train")
    find(["{cat dog}/"])
    assert not capsys.readouterr().err
