// The key that the person typed. It is kept for this tab alone, and forgotten with it.
const NAME = "embedlane-key";

export const key = () => sessionStorage.getItem(NAME) ?? "";

export function keepKey(value) {
  if (value) sessionStorage.setItem(NAME, value);
  else sessionStorage.removeItem(NAME);
}

// Headers of a request with the key, if there is one.
export const authorization = () => (key() ? { Authorization: `Bearer ${key()}` } : {});

// Whether it can be sent: a header takes no other characters.
export const isSendable = (value) => /^[\x21-\x7e]+$/.test(value);
