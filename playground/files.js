// Files in one piece: a line of JSON that names each and says how long it is, then their bytes, in that order.
export function placed(FS, root, bytes) {
  const line = bytes.indexOf(10);
  let at = line + 1;
  for (const [name, length] of JSON.parse(new TextDecoder().decode(bytes.subarray(0, line)))) {
    const path = `${root}/${name}`;
    FS.mkdirTree(path.slice(0, path.lastIndexOf("/")), 0o700); // as the cache wants its folders
    FS.writeFile(path, bytes.subarray(at, (at += length)), { canOwn: true });
  }
}
