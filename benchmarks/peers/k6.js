// The request is the environment's BODY, posted; a GET without one.
import http from "k6/http";

export const options = { vus: Number(__ENV.CONNECTIONS), duration: `${__ENV.SECONDS}s`, discardResponseBodies: true };
const headers = { headers: { "Content-Type": "application/json" } };

export default __ENV.BODY
  ? () => http.post(__ENV.URL, __ENV.BODY, headers)
  : () => http.get(__ENV.URL);

export function handleSummary(data) {
  const { http_reqs, http_req_failed } = data.metrics;
  return { stdout: JSON.stringify({ requests: http_reqs.values.count, failed: http_req_failed.values.passes }) };
}
