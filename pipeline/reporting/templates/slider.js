"use strict";
for (const slider of document.querySelectorAll(".slider")) {
  const input = slider.querySelector("input");
  const said = slider.querySelector("[role=status]");
  const rows = slider.querySelector("template").content.querySelectorAll("p");
  const show = () => {
    said.textContent = rows[Number(input.value)].textContent;
    input.setAttribute("aria-valuetext", said.textContent);
  };
  input.addEventListener("input", show);
  input.disabled = false;
  show();
}
