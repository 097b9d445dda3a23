"""The words of the grammar: every value in three languages, the usual word first.

Later words are paraphrases. Within one language and one attribute no word stands for two values,
so a caption can be read back (`grammar.parse`).
"""

LANGUAGES = ("en", "zh", "ko")

SHAPE = {
    "en": {
        "circle": ("circle",),
        "square": ("square",),
        "triangle": ("triangle",),
        "cross": ("cross",),
        "star": ("star",),
        "ring": ("ring",),
        None: ("object", "shape"),
    },
    "zh": {
        "circle": ("圆形", "圆"),
        "square": ("正方形", "方块"),
        "triangle": ("三角形",),
        "cross": ("十字形", "十字"),
        "star": ("星形", "星星"),
        "ring": ("圆环", "环形"),
        None: ("物体", "图形"),
    },
    "ko": {
        "circle": ("원", "동그라미"),
        "square": ("사각형", "정사각형"),
        "triangle": ("삼각형",),
        "cross": ("십자가", "십자"),
        "star": ("별",),
        "ring": ("고리",),
        None: ("물체", "도형"),
    },
}

PLURAL = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "cross": "crosses",
    "star": "stars",
    "ring": "rings",
    "object": "objects",
    "shape": "shapes",
}

COLOUR = {
    "en": {
        "red": ("red",),
        "green": ("green",),
        "blue": ("blue",),
        "yellow": ("yellow",),
        "orange": ("orange",),
        "purple": ("purple",),
        "pink": ("pink",),
        "cyan": ("cyan",),
    },
    "zh": {
        "red": ("红色",),
        "green": ("绿色",),
        "blue": ("蓝色",),
        "yellow": ("黄色",),
        "orange": ("橙色",),
        "purple": ("紫色",),
        "pink": ("粉色", "粉红色"),
        "cyan": ("青色",),
    },
    "ko": {
        "red": ("빨간", "빨간색"),
        "green": ("초록색", "녹색"),
        "blue": ("파란", "파란색"),
        "yellow": ("노란", "노란색"),
        "orange": ("주황색",),
        "purple": ("보라색",),
        "pink": ("분홍색",),
        "cyan": ("청록색",),
    },
}

SIZE = {
    "en": {"small": ("small", "little"), "medium": ("medium",), "large": ("large", "big")},
    "zh": {"small": ("小的", "小"), "medium": ("中等的",), "large": ("大的", "大")},
    "ko": {"small": ("작은",), "medium": ("중간 크기의",), "large": ("큰", "커다란")},
}

BACKGROUND = {
    "en": {"white": "white", "black": "black", "grey": "grey", "beige": "beige"},
    "zh": {"white": "白色", "black": "黑色", "grey": "灰色", "beige": "米色"},
    "ko": {"white": "흰색", "black": "검은색", "grey": "회색", "beige": "베이지색"},
}

RELATION = {
    "en": {
        "left of": ("left of", "to the left of"),
        "right of": ("right of", "to the right of"),
        "above": ("above",),
        "below": ("below",),
    },
    "zh": {
        "left of": ("左边", "左侧"),
        "right of": ("右边", "右侧"),
        "above": ("上方", "上面"),
        "below": ("下方", "下面"),
    },
    "ko": {
        "left of": ("왼쪽에",),
        "right of": ("오른쪽에",),
        "above": ("위에", "위쪽에"),
        "below": ("아래에", "아래쪽에"),
    },
}

# Which of two things it is. No picture's caption says so (grammar.corpus).
PLACED = {
    "en": {"left of": "left", "right of": "right", "above": "upper", "below": "lower"},
    "zh": {"left of": "左边的", "right of": "右边的", "above": "上方的", "below": "下方的"},
    "ko": {"left of": "왼쪽", "right of": "오른쪽", "above": "위쪽", "below": "아래쪽"},
}

COUNT = {
    "en": {1: ("a", "an", "one"), 2: ("two",), 3: ("three",), 4: ("four",)},
    "zh": {1: ("一个",), 2: ("两个",), 3: ("三个",), 4: ("四个",)},
    "ko": {1: ("하나", "한 개"), 2: ("두 개",), 3: ("세 개",), 4: ("네 개",)},
}

DIGIT = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "zh": ("零", "一", "二", "三", "四", "五", "六", "七", "八", "九"),
    "ko": ("영", "일", "이", "삼", "사", "오", "육", "칠", "팔", "구"),
}

CHINESE_WORDS = tuple(
    sorted(
        {
            "背景",
            "的",
            *(word for words in SHAPE["zh"].values() for word in words),
            *(word for words in COLOUR["zh"].values() for word in words),
            *BACKGROUND["zh"].values(),
            *(word for words in RELATION["zh"].values() for word in words),
            *(word for words in COUNT["zh"].values() for word in words),
        },
        key=lambda word: (-len(word), word),
    )
)
"""Every word of the Chinese grammar, longest first: Chinese writes no spaces to tell them by."""
