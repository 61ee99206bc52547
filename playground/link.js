// A text in the fragment of a link, packed as the browser packs streams.
const through = async (bytes, stream) => new Uint8Array(await new Response(new Blob([bytes]).stream().pipeThrough(stream)).arrayBuffer());

const base64 = async (value, format) =>
  btoa(String.fromCharCode(...await through(new TextEncoder().encode(JSON.stringify(value)), new CompressionStream(format))));

export const packed = async (value) => (await base64(value, "deflate-raw")).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");

// A page of Compiler Explorer with Triton kernels, compiled for an H100. It takes a state packed as zlib packs.
export async function explorer(source) {
  const compilers = [{ id: "triton_nvidia_331", options: "" }];
  return `https://godbolt.org/clientstate/${encodeURIComponent(await base64({ sessions: [{ id: 1, language: "triton", source, compilers }] }, "deflate"))}`;
}

// What a fragment holds; null where it is none of ours.
export async function unpacked(fragment) {
  if (!fragment) return null;
  try {
    const bytes = Uint8Array.from(atob(fragment.replaceAll("-", "+").replaceAll("_", "/")), (c) => c.charCodeAt(0));
    const found = JSON.parse(new TextDecoder().decode(await through(bytes, new DecompressionStream("deflate-raw"))));
    return typeof found.text === "string" ? found : null;
  } catch {
    return null;
  }
}
