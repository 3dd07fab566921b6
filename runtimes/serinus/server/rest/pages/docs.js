(function () {
  "use strict";
  // A value for each element that a large input's example leaves out.
  function blank(datatype) {
    return datatype === "BYTES" ? "" : datatype === "BOOL" ? false : 0;
  }
  function filled(request) {
    (request.inputs || []).forEach(function (input) {
      if (input.data === undefined && Array.isArray(input.shape)) {
        var count = input.shape.reduce(function (all, size) { return all * size; }, 1);
        input.data = new Array(count).fill(blank(input.datatype));
      }
    });
    return request;
  }
  async function send(form) {
    var button = form.querySelector("button");
    var said = form.querySelector(".said");
    var answered = form.querySelector(".answered");
    var request;
    answered.hidden = true;
    said.className = "said bad";
    try {
      request = JSON.stringify(filled(JSON.parse(form.querySelector("textarea").value)));
    } catch (error) {
      said.textContent = "This is not JSON: " + error.message;
      return;
    }
    button.disabled = true;
    said.className = "said soft";
    said.textContent = "Asking …";
    var began = performance.now();
    try {
      var answer = await fetch(form.getAttribute("data-path"), {
        method: "POST", headers: { "Content-Type": "application/json" }, body: request, cache: "no-store"
      });
      var text = await answer.text();
      var ms = (performance.now() - began).toFixed(1);
      var id = answer.headers.get("x-request-id");
      said.className = "said " + (answer.ok ? "good" : "bad");
      said.textContent = "Status " + answer.status + ", " + ms + " ms" + (id ? ", request id " + id : "");
      try {
        text = JSON.stringify(JSON.parse(text), null, 1);
      } catch (error) { /* shown as it came */ }
      answered.textContent = text.length > 20000 ? text.slice(0, 20000) + "\n… (" + text.length + " characters)" : text;
      answered.hidden = false;
    } catch (error) {
      said.className = "said bad";
      said.textContent = "No answer: " + error.message;
    }
    button.disabled = false;
  }
  document.querySelectorAll("form.try").forEach(function (form) {
    form.hidden = false;
    form.addEventListener("submit", function (event) {
      event.preventDefault();
      send(form);
    });
  });
})();
