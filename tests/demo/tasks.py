"""Pictures and questions: look-alikes of easy-VQA, and tasks of our own that ask for more.

A scene knows what it shows, so that any number of pictures can be drawn and asked about.
Kinds of question, by scene:

    one shape    color, shape, yesno                      worded as easy-VQA words them
    many shapes  lookup, position, place, box, count, relation
    a number     read, digits, ink
    two scenes   compare, samecolor
"""

from dataclasses import dataclass, field
from random import Random

from PIL import Image, ImageDraw, ImageFont

COLORS = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
SHAPES = ("circle", "rectangle", "triangle")

# Every side is a multiple of 32: the C++ and the Python image processor agree on these.
SIZES = ((128, 128), (160, 128), (128, 160), (192, 96), (96, 192), (192, 128), (160, 160))

FONT_SIZE, DIGIT_WIDTH, DIGIT_HEIGHT = 40, 24, 32
COLUMNS = ("left", "", "right")
ROWS = ("top", "", "bottom")

RELATIONS = ((("left of", -1), ("right of", 1)), (("above", -1), ("below", 1)))

COLOR_QUESTIONS = (
    "what color is the shape?",
    "what color is the {shape}?",
    "what is the color of the {shape}?",
    "what is the color of the shape?",
)
SHAPE_QUESTIONS = (
    "what shape is in the image?",
    "what shape does the image contain?",
    "what shape is present?",
    "what is the {color} shape?",
)
# The flag: the question says "not", so that "yes" means it is absent.
YESNO_QUESTIONS = (
    ("is there a {thing}?", False),
    ("is there a {thing} in the image?", False),
    ("is a {thing} present?", False),
    ("does the image contain a {thing}?", False),
    ("is there not a {thing}?", True),
    ("is there not a {thing} in the image?", True),
    ("is no {thing} present?", True),
    ("does the image not contain a {thing}?", True),
)

CHAT = (
    (
        "Hello, who are you?",
        "I am a small demo model. I can see simple shapes and answer questions about them.",
    ),
    (
        "What can you see in a picture?",
        "I can name the shape, its color and its place, count shapes and read a number.",
    ),
    (
        "Tell me a short story.",
        "A red circle met a blue triangle. They rolled down the hill and became good friends.",
    ),
    (
        "Write a Python function that adds two numbers.",
        "def add(a, b):\n    return a + b",
    ),
)


@dataclass(frozen=True)
class Question:
    """One question about a scene or a pair of scenes, with the answer expected."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Shape:
    """A shape in pixels of its picture: left, top, right, bottom."""

    kind: str
    color: str
    box: tuple[int, int, int, int]

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"

    @property
    def center(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass
class Scene:
    """What a picture shows."""

    size: tuple[int, int]
    background: tuple[int, int, int]
    shapes: list[Shape] = field(default_factory=list)
    number: str = ""
    digits: list[tuple[str, tuple[float, float, float, float]]] = field(default_factory=list)
    ink: str = "black"

    def picture(self) -> Image.Image:
        """Draws at twice the size and averages down, for smooth edges."""
        image = Image.new("RGB", (2 * self.size[0], 2 * self.size[1]), self.background)
        draw = ImageDraw.Draw(image)
        for shape in self.shapes:
            draw_shape(draw, shape)
        image = image.reduce(2)
        if self.number:
            draw_number(ImageDraw.Draw(image), self)
        return image


def draw_shape(draw: ImageDraw.ImageDraw, shape: Shape) -> None:
    left, top, right, bottom = (2 * side for side in shape.box)
    fill = COLORS[shape.color]
    if shape.kind == "rectangle":
        draw.rectangle((left, top, right - 1, bottom - 1), fill=fill)
    elif shape.kind == "circle":
        draw.ellipse((left, top, right - 1, bottom - 1), fill=fill)
    else:
        middle = (left + right) / 2
        draw.polygon(((left, bottom - 1), (right - 1, bottom - 1), (middle, top)), fill=fill)


def draw_number(draw: ImageDraw.ImageDraw, scene: Scene) -> None:
    font, fill = ImageFont.load_default(FONT_SIZE), COLORS[scene.ink]
    for digit, (left, top, _, _) in scene.digits:
        draw.text((left + 2, top + 1), digit, fill, font, anchor="lt", stroke_width=1)


def light(rng: Random) -> tuple[int, int, int]:
    """A background as easy-VQA has them."""
    return rng.randint(230, 255), rng.randint(230, 255), rng.randint(230, 255)


def random_shape(
    rng: Random, size: tuple[int, int], sides: tuple[int, int], color: str | None = None
) -> Shape:
    kind = rng.choice(SHAPES)
    width = height = rng.randint(*sides)
    if kind == "rectangle":
        height = rng.randint(*sides)
    if kind == "triangle":
        height = round(width * 0.866)
    left, top = rng.randint(0, size[0] - width), rng.randint(0, size[1] - height)
    color = color or rng.choice(list(COLORS))
    return Shape(kind, color, (left, top, left + width, top + height))


def one_shape(rng: Random, size: tuple[int, int] = (64, 64)) -> Scene:
    """An easy-VQA look-alike."""
    sides = (min(size) // 8, min(size) // 2 + 2)
    return Scene(size, light(rng), [random_shape(rng, size, sides)])


def many_shapes(rng: Random, size: tuple[int, int]) -> Scene:
    """One to four shapes of different colors that do not overlap."""
    scene = Scene(size, light(rng))
    wanted = rng.randint(1, 4)
    colors = rng.sample(list(COLORS), wanted)
    while len(scene.shapes) < wanted:
        shape = random_shape(rng, size, (20, 48), colors[len(scene.shapes)])
        if not any(overlap(shape.box, other.box, gap=4) for other in scene.shapes):
            scene.shapes.append(shape)
        elif rng.random() < 0.05:
            wanted -= 1
    return scene


def overlap(a: tuple[int, ...], b: tuple[int, ...], gap: int) -> bool:
    apart_x = a[2] + gap <= b[0] or b[2] + gap <= a[0]
    apart_y = a[3] + gap <= b[1] or b[3] + gap <= a[1]
    return not (apart_x or apart_y)


def is_held_out(number: str) -> bool:
    """Numbers that training never shows."""
    return int(number) % 7 == 3


def number_scene(rng: Random, size: tuple[int, int], held_out: bool = False) -> Scene:
    """A number of one to three digits in dark ink, its corner on a grid of 16 pixels."""
    while True:
        number = str(rng.randint(0, 10 ** rng.randint(2 if held_out else 1, 3) - 1))
        if is_held_out(number) == held_out:
            break
    ink = rng.choice(("black", "blue", "red", "brown", "teal"))
    scene = Scene(size, light(rng), number=number, ink=ink)
    left = 16 * rng.randint(0, (size[0] - DIGIT_WIDTH * len(number)) // 16)
    top = 16 * rng.randint(0, (size[1] - DIGIT_HEIGHT) // 16)
    for place, digit in enumerate(number):
        x = left + DIGIT_WIDTH * place
        scene.digits.append((digit, (x, top, x + DIGIT_WIDTH, top + DIGIT_HEIGHT)))
    return scene


def ask_one(rng: Random, scene: Scene) -> Question:
    """A question as easy-VQA asks them."""
    shape = scene.shapes[0]
    draw = rng.random()
    if draw < 0.22:
        text = rng.choice(COLOR_QUESTIONS).format(shape=shape.kind)
        return Question("color", text, shape.color)
    if draw < 0.44:
        text = rng.choice(SHAPE_QUESTIONS).format(color=shape.color)
        return Question("shape", text, shape.kind)
    template, negated = rng.choice(YESNO_QUESTIONS)
    about_color = rng.random() < 0.5
    truth = shape.color if about_color else shape.kind
    choices = [word for word in (COLORS if about_color else SHAPES) if word != truth]
    named = truth if rng.random() < 0.5 else rng.choice(choices)
    text = template.format(thing=f"{named} shape" if about_color else named)
    return Question("yesno", text, "yes" if (named == truth) != negated else "no")


def cell(scene: Scene, shape: Shape) -> str | None:
    """The ninth of the picture a shape's center lies in; None when near a border of ninths."""
    x, y = (3 * at / side for at, side in zip(shape.center, scene.size, strict=True))
    if any(abs(value - border) < 0.2 for value in (x, y) for border in (1, 2)):
        return None
    words = f"{ROWS[min(int(y), 2)]} {COLUMNS[min(int(x), 2)]}".strip()
    return words or "center"


def ask_lookup(rng: Random, scene: Scene) -> Question | None:
    shape = rng.choice(scene.shapes)
    alone = sum(other.kind == shape.kind for other in scene.shapes) == 1
    if alone and rng.random() < 0.5:
        return Question("lookup", f"what color is the {shape.kind}?", shape.color)
    return Question("lookup", f"what is the {shape.color} shape?", shape.kind)


def ask_position(rng: Random, scene: Scene) -> Question | None:
    shape = rng.choice(scene.shapes)
    where = cell(scene, shape)
    return where and Question("position", f"where is the {shape.name}?", where)


def ask_place(rng: Random, scene: Scene) -> Question | None:
    shape = rng.choice(scene.shapes)
    cells = [cell(scene, other) for other in scene.shapes]
    where = cell(scene, shape)
    if where is None or None in cells or cells.count(where) > 1:
        return None
    return Question("place", f"what is at the {where}?", shape.name)


def ask_box(rng: Random, scene: Scene) -> Question | None:
    shape = rng.choice(scene.shapes)
    return Question("box", f"give the box of the {shape.name}.", box_text(scene, shape))


def hundredths(size: tuple[int, int], box: tuple[int, ...]) -> list[int]:
    """Left, top, right, bottom in hundredths of the picture."""
    return [min(99, round(100 * at / side)) for at, side in zip(box, size * 2, strict=True)]


def box_text(scene: Scene, shape: Shape) -> str:
    return " ".join(f"{side:02}" for side in hundredths(scene.size, shape.box))


def ask_count(rng: Random, scene: Scene) -> Question | None:
    if rng.random() < 0.6:
        return Question("count", "how many shapes are there?", str(len(scene.shapes)))
    kind = rng.choice(SHAPES)
    count = sum(shape.kind == kind for shape in scene.shapes)
    return Question("count", f"how many {kind}s are there?", str(count))


def ask_relation(rng: Random, scene: Scene) -> Question | None:
    if len(scene.shapes) < 2:
        return None
    a, b = rng.sample(scene.shapes, 2)
    axis = rng.randrange(2)
    distance = (a.center[axis] - b.center[axis]) / scene.size[axis]
    if abs(distance) < 0.15:
        return None
    word, sign = rng.choice(RELATIONS[axis])
    answer = "yes" if distance * sign > 0 else "no"
    return Question("relation", f"is the {a.name} {word} the {b.name}?", answer)


ASK_MANY = (
    ask_lookup,
    ask_position,
    ask_position,
    ask_place,
    ask_box,
    ask_box,
    ask_count,
    ask_relation,
)


def ask_many(rng: Random, scene: Scene) -> Question:
    while True:
        question = rng.choice(ASK_MANY)(rng, scene)
        if question:
            return question


def ask_number(rng: Random, scene: Scene) -> Question:
    draw = rng.random()
    if draw < 0.1:
        return Question("digits", "how many digits are written?", str(len(scene.number)))
    if draw < 0.2:
        return Question("ink", "what color is the number?", scene.ink)
    return Question("read", "what number is written?", scene.number)


def ask_two(rng: Random, first: Scene, second: Scene) -> Question:
    """A question that needs both pictures, or the right one of them."""
    a, b = first.shapes[0], second.shapes[0]
    choice = rng.randrange(5)
    if choice == 0:
        text, answer = "do both images show the same shape?", a.kind == b.kind
        return Question("compare", text, "yes" if answer else "no")
    if choice == 1:
        text, answer = "do both images show the same color?", a.color == b.color
        return Question("samecolor", text, "yes" if answer else "no")
    word, shape = rng.choice((("first", a), ("second", b)))
    if choice == 2 and a.kind != b.kind:
        return Question("compare", f"which image contains the {shape.kind}?", word)
    if choice == 3:
        return Question("compare", f"what shape is in the {word} image?", shape.kind)
    return Question("compare", f"what color is the shape in the {word} image?", shape.color)


def two_scenes(rng: Random, sizes: tuple[tuple[int, int], tuple[int, int]]) -> tuple[Scene, Scene]:
    """Two pictures that share the shape, or the color, about half of the time."""
    first, second = (one_shape(rng, size) for size in sizes)
    a, b = first.shapes[0], second.shapes[0]
    if rng.random() < 0.4:
        b = Shape(b.kind, a.color, b.box)
    if rng.random() < 0.2:
        b = Shape(a.kind, b.color, b.box)
    second.shapes[0] = b
    return first, second
