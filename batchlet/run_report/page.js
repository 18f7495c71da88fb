"use strict";
// A plot is a canvas, and does not follow the paper's width: before printing it is told how much smaller it has to be.
(function () {
  const PAPER = 680; // pixels of CSS that fit beside the margins, on A4 and on Letter
  function note() {
    for (const drawing of document.querySelectorAll(".drawing")) {
      const width = drawing.clientWidth;
      if (width > 0) {
        drawing.style.setProperty("--drawn", width + "px");
        drawing.style.setProperty("--smaller", Math.min(1, PAPER / width));
      }
    }
  }
  window.addEventListener("beforeprint", note);
})();
