// node pack.mjs python.zip sympy.zip OUT: modules become bytecode of the Python that will load them; what it would work out at first (the tables
// of the parser, the fusing of the specs in prepared.json) is put in with them; and Python's memory is kept as it is once it has answered.
import { readFile, writeFile } from "node:fs/promises";
import { promisify } from "node:util";
import { gzip } from "node:zlib";
import { loadPyodide } from "pyodide";
import { placed } from "./files.js";

const [, , packages, algebra, out] = process.argv;
const prepared = await readFile(new URL("./prepared.json", import.meta.url), "utf-8");
const written = async (name, bytes) => writeFile(`${out}/${name}.gz`, await promisify(gzip)(bytes, { level: 9 }));

async function compiled() {
  const pyodide = await loadPyodide();
  for (const [file, folder] of [[packages, "/packages"], [algebra, "/algebra"]]) {
    pyodide.unpackArchive(new Uint8Array(await readFile(file)), "zip", { extractDir: folder });
  }
  pyodide.globals.set("prepared", prepared);
  pyodide.runPython(`
import compileall, json, os, pathlib, py_compile, sys

def compiled(root, optimize):
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    assert compileall.compile_dir(root, quiet=1, legacy=True, optimize=optimize, invalidation_mode=mode), root
    for path in root.rglob("*.py"):
        path.unlink()

def joined(root):
    files = {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
    head = json.dumps([[name, len(data)] for name, data in files.items()])
    pathlib.Path(f"{root}.joined").write_bytes(b"\\n".join([head.encode(), b"".join(files.values())]))

roots = {pathlib.Path("/packages"): 0, pathlib.Path("/algebra"): 2}  # of algebra no docstrings, which are a fifth of it
for root, optimize in roots.items():
    compiled(root, optimize)
sys.path[:0] = map(str, roots)
os.environ["EINFUSE_CACHE"] = "/packages/kept"
from einfuse._editor import page
for spec in page.library()["specs"]:
    if spec["name"] in json.loads(prepared):
        for question in ({"question": "check", "fuse": True}, {"question": "fused"}, {"question": "tiles"}):
            found = json.loads(page.answer(json.dumps({**question, "text": spec["text"]})))
            assert "error" not in found, (spec["name"], found)
for root in roots:
    joined(root)
`);
  return [pyodide.FS.readFile("/packages.joined"), pyodide.FS.readFile("/algebra.joined")];
}

// A start from it imports nothing: only what is no memory, the files, is to be put in place.
async function memory(files) {
  const pyodide = await loadPyodide({ _makeSnapshot: true });
  placed(pyodide.FS, "/packages", files);
  pyodide.globals.set("prepared", prepared);
  pyodide.runPython(`
import gc, json, os, sys
sys.path.insert(0, "/packages")
os.environ["EINFUSE_CACHE"] = "/packages/kept"

def asked():
    from einfuse._editor import page
    text = next(s["text"] for s in page.library()["specs"] if s["name"] in json.loads(prepared))
    for question in ("check", "about", "fused", "tiles"):
        page.answer(json.dumps({"question": question, "text": text}))

asked()
del asked, prepared
gc.collect()
`);
  return pyodide.makeMemorySnapshot();
}

const [python, sympy] = await compiled();
await Promise.all([written("python", python), written("sympy", sympy), memory(python).then((bytes) => written("memory", bytes))]);
