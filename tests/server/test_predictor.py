from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from server.predictor import ImageSizeError, Predictor

from server.settings import Settings
from student.bundle import Bundle, Prediction
from student.model import FUSIONS
from teacher_cache.errors import ImageError


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> Iterator[Predictor]:
    predictor = Predictor(bundle, Settings(lanes=2))
    yield predictor
    predictor.close()


def alone(bundle: Bundle, image: bytes, fusion: str = "") -> Prediction:
    return bundle.predict(torch.from_numpy(bundle.prepare(image))[None], fusion)


def equal(one: Prediction | Exception, other: Prediction) -> bool:
    assert isinstance(one, Prediction)
    rows = ((one.class_, other.class_), (one.distill, other.distill), (one.fused, other.fused))
    return all(torch.equal(mine, its) for mine, its in rows)


def test_every_kind_of_image_is_judged_as_the_bundle_judges_it_alone(
    predictor: Predictor, bundle: Bundle, pictures: dict[str, bytes]
) -> None:
    judged = predictor.predict(list(pictures.values()))
    assert [name for name, one in zip(pictures, judged, strict=True) if isinstance(one.outcome, Exception)] == []
    assert all(
        equal(one.outcome, alone(bundle, image)) for one, image in zip(judged, pictures.values(), strict=True)
    )


def test_exif_orientation_turns_the_image(predictor: Predictor, pictures: dict[str, bytes]) -> None:
    lying, turned, upright = predictor.predict([pictures[f"{kind}png"] for kind in ("", "rotated ", "turned ")])
    assert isinstance(upright.outcome, Prediction)
    assert equal(turned.outcome, upright.outcome)
    assert not equal(lying.outcome, upright.outcome)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusion_is_the_one_asked_for(
    predictor: Predictor, bundle: Bundle, pictures: dict[str, bytes], fusion: str
) -> None:
    (judged,) = predictor.predict([pictures["jpeg"]], fusion)
    assert equal(judged.outcome, alone(bundle, pictures["jpeg"], fusion))


def test_bad_images_spoil_no_other_answer(predictor: Predictor, pictures: dict[str, bytes]) -> None:
    good = pictures["jpeg"]
    bad = [b"", b"no image", good[:200], pictures["png"][:100]]
    (expected,) = predictor.predict([good])
    assert isinstance(expected.outcome, Prediction)
    judged = predictor.predict([image for pair in zip(bad, [good] * 4, strict=True) for image in pair])
    assert all(isinstance(one.outcome, ImageError) for one in judged[::2])
    assert all(equal(one.outcome, expected.outcome) for one in judged[1::2])


def test_what_no_one_foresaw_is_one_image_s_alone(bundle: Bundle, pictures: dict[str, bytes]) -> None:
    class Torn(Bundle):
        def prepare(self, image: bytes) -> object:  # type: ignore[override]  # it answers wrongly or not at all
            return bundle.prepare(image) if image == pictures["png"] else 1 / 0

    predictor = Predictor(Torn(bundle.card, bundle.student, bundle.device), Settings(lanes=1))
    torn, whole = predictor.predict([pictures["jpeg"], pictures["png"]])
    predictor.close()
    assert isinstance(torn.outcome, ZeroDivisionError)
    assert isinstance(whole.outcome, Prediction)


@pytest.mark.parametrize("size", [(7100, 7100), (12_000, 12_000), (60_000, 60_000)])
def test_too_many_pixels_are_refused_by_the_header(
    predictor: Predictor, vast: Callable[[int, int], bytes], size: tuple[int, int]
) -> None:
    (judged,) = predictor.predict([vast(*size)])
    assert isinstance(judged.outcome, ImageSizeError)


def test_formats_that_need_a_program_are_refused(predictor: Predictor) -> None:
    (judged,) = predictor.predict([b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"])
    assert isinstance(judged.outcome, ImageError)
    assert "EPS images are not taken" in str(judged.outcome)


def test_lanes_compute_with_one_thread_each(predictor: Predictor) -> None:
    assert predictor._lanes.submit(torch.get_num_threads).result() == 1


def test_probe_goes_through_the_network(predictor: Predictor) -> None:
    assert predictor.probe().result().fused.shape == (1, 3)


def test_closed_predictor_drops_what_waits(bundle: Bundle, pictures: dict[str, bytes]) -> None:
    predictor = Predictor(replace(bundle), Settings(lanes=1))
    waiting = [predictor.submit(pictures["jpeg"]) for _ in range(200)]
    predictor.close()
    assert all(future.done() for future in waiting)
    assert waiting[-1].cancelled()
