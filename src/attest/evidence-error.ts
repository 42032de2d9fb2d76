/** Evidence that cannot be read at all. The message names the field, what is there and what should be. */
export class EvidenceError extends Error {
  override readonly name = 'EvidenceError';
}
