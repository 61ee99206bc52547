// The compiler's own rules of colouring (colours.json, made of the grammar when the page is built) for CodeMirror.
import { HighlightStyle, StreamLanguage, syntaxHighlighting } from "@codemirror/language";
import { tags } from "@lezer/highlight";
import found from "./build/colours.json";

const TAGS = {
  docstring: tags.string, comment: tags.comment, number: tags.number, truth: tags.bool, keyword: tags.keyword, join: tags.operatorKeyword,
  type: tags.typeName, defined: tags.definition(tags.variableName), known: tags.standard(tags.variableName), name: tags.variableName,
  operator: tags.operator, bracket: tags.punctuation,
};
const rules = found.filter((r) => r.kinds[0] !== "docstring").map((r) => ({ ...r, pattern: new RegExp(`^(?:${r.pattern})`) }));

function token(stream, state) {
  if (state.rest.length) {
    const [kind, length] = state.rest.shift();
    stream.pos += length;
    return kind || null;
  }
  if (state.inside || stream.match('"""')) {
    state.inside = !stream.match(/^.*?"""/) && (stream.skipToEnd(), true);
    return "docstring";
  }
  if (stream.eatSpace()) return null;
  for (const { pattern, kinds } of rules) {
    const m = stream.match(pattern);
    if (!m || !m[0].length) continue;
    if (kinds.length === 1) return kinds[0];
    stream.pos -= m[0].length;
    state.rest = kinds.map((kind, n) => [kind, m[n + 1].length]).filter(([, length]) => length);
    return token(stream, state);
  }
  stream.next();
  return null;
}

const language = StreamLanguage.define({
  name: "attn", startState: () => ({ inside: false, rest: [] }), token, tokenTable: TAGS,
  copyState: (s) => ({ inside: s.inside, rest: s.rest.slice() }), languageData: { commentTokens: { line: "#" } },
});
const style = HighlightStyle.define([
  { tag: [tags.keyword, tags.operatorKeyword], color: "var(--keyword)" },
  { tag: [tags.string, tags.comment], color: "var(--string)" },
  { tag: [tags.number, tags.bool], color: "var(--number)" },
  { tag: [tags.typeName, tags.standard(tags.variableName)], color: "var(--known)" },
  { tag: tags.definition(tags.variableName), fontWeight: "bold" },
]);

export const colours = [language, syntaxHighlighting(style)];
