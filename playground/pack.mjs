// node pack.mjs python.zip sympy.zip OUT: modules become bytecode of the Python that will load them, and what it would work out at first (the
// tables of the parser, the fusing of the specs in prepared.json) is put in with them.
import { readFile, writeFile } from "node:fs/promises";
import { loadPyodide } from "pyodide";

const [, , packages, algebra, out] = process.argv;
const pyodide = await loadPyodide();
for (const [file, folder] of [[packages, "/packages"], [algebra, "/algebra"]]) {
  pyodide.unpackArchive(new Uint8Array(await readFile(file)), "zip", { extractDir: folder });
}
pyodide.globals.set("prepared", await readFile(new URL("./prepared.json", import.meta.url), "utf-8"));
pyodide.runPython(`
import compileall, json, os, pathlib, py_compile, sys, zipfile

def compiled(root):
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    assert compileall.compile_dir(root, quiet=1, legacy=True, optimize=0, invalidation_mode=mode), root
    for path in root.rglob("*.py"):
        path.unlink()

def zipped(root, name):
    with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                out.write(path, path.relative_to(root).as_posix())

roots = [pathlib.Path("/packages"), pathlib.Path("/algebra")]
for root in roots:
    compiled(root)
sys.path[:0] = map(str, roots)
os.environ["EINFUSE_CACHE"] = "/packages/kept"
from einfuse._editor import page
for spec in page.library()["specs"]:
    if spec["name"] in json.loads(prepared):
        for question in ({"question": "check", "fuse": True}, {"question": "fused"}, {"question": "tiles"}):
            found = json.loads(page.answer(json.dumps({**question, "text": spec["text"]})))
            assert "error" not in found, (spec["name"], found)
for root in roots:
    zipped(root, f"{root}.zip")
`);
for (const [made, name] of [["/packages.zip", "python.zip"], ["/algebra.zip", "sympy.zip"]]) {
  await writeFile(`${out}/${name}`, pyodide.FS.readFile(made));
}
