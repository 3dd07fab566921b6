(function () {
  "use strict";
  // What a person typed; in memory alone, so that it is gone with the page.
  var token = "";

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
  function say(form, kind, text) {
    var said = form.querySelector(".said");
    said.className = "said " + kind;
    said.textContent = text;
  }
  function ask(path, method, headers, body) {
    if (token) headers.Authorization = "Bearer " + token;
    return fetch(path, { method: method, headers: headers, body: body, cache: "no-store", credentials: "omit" });
  }
  // Takes the token that a form has, where it asks for one.
  function take(form) {
    var field = form.querySelector(".token");
    if (!field.hidden && field.querySelector("input").value.trim()) token = field.querySelector("input").value.trim();
  }
  // Asks for a token where the server wants one, and none is known or it wants another.
  function want(form) {
    var field = form.querySelector(".token");
    say(form, "bad", token ? "The server takes another token." : "The server needs a token.");
    token = "";
    field.hidden = false;
    field.querySelector("input").value = "";
    field.querySelector("input").focus();
  }
  async function send(form) {
    var button = form.querySelector("button");
    var answered = form.querySelector(".answered");
    var request;
    answered.hidden = true;
    try {
      request = JSON.stringify(filled(JSON.parse(form.querySelector("textarea").value)));
    } catch (error) {
      say(form, "bad", "This is not JSON: " + error.message);
      return;
    }
    take(form);
    button.disabled = true;
    say(form, "soft", "Asking …");
    var began = performance.now();
    try {
      var answer = await ask(form.getAttribute("data-path"), "POST", { "Content-Type": "application/json" }, request);
      var text = await answer.text();
      var ms = (performance.now() - began).toFixed(1);
      var id = answer.headers.get("x-request-id");
      if (answer.status === 401) {
        want(form);
      } else {
        say(form, answer.ok ? "good" : "bad", "Status " + answer.status + ", " + ms + " ms" + (id ? ", request id " + id : ""));
        try {
          text = JSON.stringify(JSON.parse(text), null, 1);
        } catch (error) { /* shown as it came */ }
        answered.textContent = text.length > 20000 ? text.slice(0, 20000) + "\n… (" + text.length + " characters)" : text;
        answered.hidden = false;
      }
    } catch (error) {
      say(form, "bad", "No answer: " + error.message);
    }
    button.disabled = false;
  }
  // The page itself needs a token: it is fetched with it, and takes the place of the question.
  async function unlock(form) {
    take(form);
    say(form, "soft", "Asking …");
    try {
      var answer = await ask(form.getAttribute("data-path"), "GET", { Accept: "text/html" });
      if (answer.ok) {
        var page = new DOMParser().parseFromString(await answer.text(), "text/html");
        document.title = page.title;
        document.querySelector("main").replaceWith(page.querySelector("main"));
        attach();
      } else if (answer.status === 401) {
        want(form);
      } else {
        say(form, "bad", "Status " + answer.status);
      }
    } catch (error) {
      say(form, "bad", "No answer: " + error.message);
    }
  }
  function attach() {
    document.querySelectorAll("form").forEach(function (form) {
      form.hidden = false;
      form.addEventListener("submit", function (event) {
        event.preventDefault();
        (form.className === "try" ? send : unlock)(form);
      });
    });
  }
  attach();
})();
