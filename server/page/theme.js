// Before anything is drawn: light or dark, where the user chose. (A module would run too late.)
try {
  document.documentElement.dataset.theme = localStorage.getItem("llama4-edge.theme") ?? "auto";
} catch {
  document.documentElement.dataset.theme = "auto"; // a browser that keeps nothing
}
