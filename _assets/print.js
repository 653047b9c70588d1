// On paper: light, whatever the screen shows, and with every picture and everything unfolded.
const paper = matchMedia("print"), root = document.documentElement;
let theme, folded = [];

function lay() {
  if (paper.matches) {
    document.querySelectorAll("img[loading]").forEach(img => (img.loading = "eager"));
    theme = root.dataset.theme;
    root.dataset.theme = "light";
    folded = [...document.querySelectorAll("article details:not([open])")];
    folded.forEach(details => (details.open = true));
  } else if (theme) {
    root.dataset.theme = theme;
    folded.forEach(details => (details.open = false));
  }
}

paper.addEventListener("change", lay);
