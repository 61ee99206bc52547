// Starts `einfuse lsp` for .attn files; everything it says comes from there.
const { workspace } = require("vscode");
const { LanguageClient } = require("vscode-languageclient/node");

let client;

exports.activate = async () => {
  const [command, ...args] = workspace.getConfiguration("einfuse").get("command");
  const cwd = workspace.workspaceFolders?.[0]?.uri.fsPath;
  client = new LanguageClient(
    "einfuse",
    { command, args, options: { cwd } },
    { documentSelector: [{ language: "attn" }] },
  );
  await client.start();
};

exports.deactivate = () => client?.stop();
