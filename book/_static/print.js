// Paper is white: a page in dark colours is printed in light ones, and dark again after.
(() => {
  const root = document.documentElement;
  let screen = null;
  const onPaper = (printing) => {
    if (printing && screen === null) {
      screen = root.dataset.theme;
      root.dataset.theme = "light";
    } else if (!printing && screen !== null) {
      root.dataset.theme = screen;
      screen = null;
    }
  };
  matchMedia("print").addEventListener("change", (event) => onPaper(event.matches));
  addEventListener("beforeprint", () => onPaper(true));
  addEventListener("afterprint", () => onPaper(false));
})();
