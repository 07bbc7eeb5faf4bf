// Lines that work as they stand, once the key is put in.
import { element } from "./dom.js";

const SNIPPETS = {
  curl: (url) => `curl -s ${url}/v1/embeddings \\
  -H 'Authorization: Bearer YOUR-KEY' \\
  -H 'Content-Type: application/json' \\
  -d '{"input": ["one text", "another"]}'`,
  openai: (url, model) => `# pip install openai
from openai import OpenAI

client = OpenAI(base_url="${url}/v1", api_key="YOUR-KEY")
answer = client.embeddings.create(model="${model}", input=["one text", "another"])
print(len(answer.data), len(answer.data[0].embedding))`,
  langchain: (url, model) => `# pip install langchain-openai
from langchain_openai import OpenAIEmbeddings

embeddings = OpenAIEmbeddings(
    model="${model}",
    base_url="${url}/v1",
    api_key="YOUR-KEY",
    check_embedding_ctx_length=False,  # send texts, not OpenAI's token ids
)
vectors = embeddings.embed_documents(["one text", "another"])
print(len(vectors), len(vectors[0]))`,
};

export function startClients() {
  const snippet = element("snippet");
  const note = element("copy-note");
  const chosen = () => document.querySelector("input[name=client]:checked").value;
  // The server takes any name.
  let model = "embedlane";

  function show() {
    snippet.textContent = SNIPPETS[chosen()](location.origin, model);
    note.textContent = "";
  }

  for (const choice of document.querySelectorAll("input[name=client]")) choice.addEventListener("change", show);
  element("copy").addEventListener("click", async () => {
    note.textContent = (await copy(snippet)) ? "Copied. Put your key in the place of YOUR-KEY." : "Selected: press Ctrl+C or ⌘C.";
  });
  show();

  return {
    setModel(name) {
      if (name === model) return;
      model = name;
      show();
    },
  };
}

// To the clipboard; where there is none (plain http, other than localhost) the text is left selected, and false given.
async function copy(node) {
  try {
    await navigator.clipboard.writeText(node.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(node);
    return false;
  }
}
