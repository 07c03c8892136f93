"""Decodes HAPT.pkl.gz, a pickle of old pandas frames, into npy arrays: hapt.py FILE DIR

A pickle may name any function to be called, so only the twelve names that this file needs are
resolved, all of them to the stand-ins below: nothing of numpy or pandas is imported.
"""
import array, codecs, gzip, os, pickle, struct, sys


class Stub:
    """Any object: remembers its state."""
    def __init__(self, *_):
        self.state = None

    def __setstate__(self, state):
        self.state = state


class Frame(Stub): pass
class Manager(Stub): pass
class Index(Stub): pass
class Range(Stub): pass
class Array(Stub): pass


class Type:
    def __init__(self, code, *_):
        self.code = code

    def __setstate__(self, state):
        pass


def new_index(kind, state):
    index = kind()
    index.state = state
    return index


ALLOWED = {
    "copy_reg _reconstructor": lambda kind, *_: kind(),
    "pandas.core.frame DataFrame": Frame,
    "pandas.core.internals.managers BlockManager": Manager,
    "pandas.core.indexes.base _new_Index": new_index,
    "pandas.core.indexes.base Index": Index,
    "pandas.core.indexes.range RangeIndex": Range,
    "numpy.core.multiarray _reconstruct": lambda kind, *_: kind(),
    "numpy ndarray": Array,
    "numpy dtype": Type,
    "_codecs encode": lambda text, name: codecs.encode(text, "latin1"),
    "__builtin__ object": object,
    "__builtin__ slice": slice,
}


class Restricted(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return ALLOWED[f"{module} {name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which it must not") from None


def rows_of(block):
    """Rows of a two-dimensional array, as Python numbers."""
    _, (rows, columns), kind, fortran, data = block.state
    values = array.array({"f8": "d", "f4": "f", "i8": "q", "i4": "i", "u1": "B"}[kind.code])
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    assert len(values) == rows * columns
    if fortran:
        return [values[r::rows] for r in range(rows)]
    return [values[r * columns:(r + 1) * columns] for r in range(rows)]


def columns_of(frame):
    """Column name to values."""
    manager = frame.state["_data"] if "_data" in frame.state else frame.state["_mgr"]
    state = manager.state
    labelled = next(part for part in state if isinstance(part, dict))["0.14.1"]
    names = labelled["axes"][0].state["data"].state[4]
    found = {}
    for block in labelled["blocks"]:
        places = block["mgr_locs"]
        if isinstance(places, slice):
            places = range(len(names))[places]
        else:
            places = rows_of_one(places)
        for place, row in zip(places, rows_of(block["values"])):
            found[names[place]] = row
    return found


def rows_of_one(places):
    _, (count,), kind, _, data = places.state
    return struct.unpack("<" + str(count) + {"i8": "q", "i4": "i"}[kind.code], data)


def write(path, descr, shape, values):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    header += " " * (-(len(header) + 11) % 64) + "\n"
    if sys.byteorder == "big":
        values.byteswap()
    with open(path, "wb") as out:
        out.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + values.tobytes())


CHANNELS = ["acc-x", "acc-y", "acc-z", "gyro-x", "gyro-y", "gyro-z"]


def main(source, target):
    with gzip.open(source) as file:
        people = Restricted(file, encoding="latin1").load()
    data, labels, persons, runs = (array.array(code) for code in "fqqq")
    run = 0
    for person in sorted(people):
        for frame in people[person]:
            columns = columns_of(frame)
            count = len(columns["label"])
            block = array.array("f", bytes(4 * 6 * count))
            for c, name in enumerate(CHANNELS):
                block[c::6] = array.array("f", columns[name])
            data.extend(block)
            labels.extend(max(0, int(v)) for v in columns["label"])  # 0: unlabelled
            persons.extend([int(person)] * count)
            runs.extend([run] * count)
            run += 1
    count = len(labels)
    write(os.path.join(target, "X.npy"), "<f4", (count, 6), data)
    for name, values in [("y", labels), ("person", persons), ("run", runs)]:
        write(os.path.join(target, name + ".npy"), "<i8", (count,), values)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: hapt.py FILE DIR")
    main(*sys.argv[1:])
