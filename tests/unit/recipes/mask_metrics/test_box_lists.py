"""Lists of prompts with boxes per frame: what is read, stretched and refused."""

import json

import pytest

from mask_guided_video.recipes.mask_metrics.box_lists import BoxRecord, empty_boxes, read_box_list

BOX = [0.25, 0.5, 0.75, 1.0]


def entry(**values):
    return {"id": 1, "caption": "a red  ball on sand", "subject": "Red Ball", "bboxes": [BOX, BOX], **values}


@pytest.fixture
def write(tmp_path):
    def to_file(content):
        path = tmp_path / "list.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return to_file


def test_a_list(write):
    first, second = read_box_list(write([entry(metadata={"motion": "Left to right"}), entry(id="a/b 2", bboxes=[BOX])]))
    assert (first.name, first.caption, first.subject) == ("1", "a red ball on sand", "Red Ball")
    assert first.boxes == (tuple(BOX),) * 2 and second.name == "a_b_2"
    assert first.corners(2, 8, 4) == [(1, 4, 3, 8)] * 2


def test_lasot_has_another_order(write):
    """Left 0.1, right 0.6, top 0.5, bottom 0.9; read in the usual order it ends above its beginning."""
    path = write([entry(bboxes=[[0.1, 0.6, 0.5, 0.9], [0.6, 0.7, 0.2, 0.3]])])
    (usual,), (other,) = read_box_list(path), read_box_list(path, "xxyy")
    assert other.boxes == ((0.1, 0.5, 0.6, 0.9), (0.6, 0.2, 0.7, 0.3))
    assert usual.boxes == ((0.1, 0.6, 0.5, 0.9), None) and empty_boxes([usual]) == (1, 2)


def test_boxes_of_no_size_are_none(write):
    (record,) = read_box_list(write([entry(bboxes=[[0.5, 0.5, 0.5, 0.5], None, BOX])]))
    assert record.boxes == (None, None, tuple(BOX))
    assert record.corners(3, 10, 10)[:2] == [None, None]


class TestStretching:
    def record(self, *boxes):
        return BoxRecord("1", "a ball", "ball", boxes)

    def test_between_two_boxes(self):
        corners = self.record((0, 0, 0.5, 0.5), (0.5, 0, 1, 0.5)).corners(5, 8, 8)
        assert [box[0] for box in corners] == [0, 1, 2, 3, 4] and [box[3] for box in corners] == [4] * 5

    def test_fewer_frames_keep_the_ends(self):
        boxes = [(place / 10, 0, place / 10 + 0.5, 1) for place in range(5)]
        corners = self.record(*boxes).corners(3, 10, 10)
        assert [box[0] for box in corners] == pytest.approx([0, 2, 4])
        assert self.record(*boxes).corners(1, 10, 10)[0][0] == 0

    def test_beside_a_frame_without_a_box_the_nearer_one_counts(self):
        """Frames lie at 0, 0.25 ... 2; half way the earlier one counts."""
        corners = self.record((0, 0, 1, 1), None, (0, 0, 1, 1)).corners(9, 4, 4)
        assert [box is None for box in corners] == [False, False, False, True, True, True, True, False, False]

    def test_one_box_is_for_all_frames(self):
        assert self.record((0, 0, 1, 1)).corners(3, 4, 4) == [(0, 0, 4, 4)] * 3

    def test_its_own_length_changes_nothing(self):
        boxes = ((0.1, 0.2, 0.7, 0.9), None, (0.3, 0.2, 0.5, 0.4))
        corners = self.record(*boxes).corners(3, 1, 1)
        assert corners == list(boxes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "cannot be read"),
        ([], "holds no records"),
        ({"id": 1}, "holds no records"),
        ([{"id": 1, "caption": "a"}], "record 0 of 'list.json' lacks subject, bboxes"),
        (["text"], "record 0 .* lacks id, caption"),
        ([entry(), entry(id="1")], "two records .* the id '1'"),
        ([entry(subject=" ")], "empty subject"),
        ([entry(bboxes=[])], "no bboxes"),
        ([entry(bboxes=[[0, 0, 1]])], r"the box \[0, 0, 1\]; give four numbers"),
        ([entry(bboxes=[[0, 0, True, 1]])], "give four numbers"),
        ([entry(bboxes=["0011"])], "give four numbers"),
        ([entry(bboxes=[[10, 20, 300, 200]])], "in parts of the picture, 0 to 1, not in pixels"),
        ('[{"id": 1, "caption": "a", "subject": "a", "bboxes": [[0, 0, NaN, 1]]}]', "in parts of the picture"),
    ],
)
def test_what_is_refused(write, content, message):
    with pytest.raises(ValueError, match=message):
        read_box_list(write(content))


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_box_list(tmp_path / "nowhere.json")
