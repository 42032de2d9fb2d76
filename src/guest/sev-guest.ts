/**
 * /dev/sev-guest (Linux drivers/virt/coco/sev-guest/sev-guest.c; reference facts 6.1): reports, derived keys, and reports with certificates, by encrypted messages to firmware. A
 * sequence number is used for one message alone: where the driver cannot know whether firmware has seen a message, it gives up its key for ever.
 *
 * Left out: the SVSM's services.
 */
import { createCipheriv, createDecipheriv } from 'node:crypto';
import {
  GUEST_MESSAGE,
  GUEST_MESSAGE_AAD_OFFSET,
  GUEST_MESSAGE_ALGO_AES_256_GCM,
  GUEST_MESSAGE_HEADER_SIZE,
  GUEST_MESSAGE_HEADER_VERSION,
  guestMessageHeader,
} from '../abi/guest-message.ts';
import { LinuxError } from '../base/errors.ts';
import type { GuestTransport, SharedBuffer } from './transport.ts';

/** SW_EXITINFO2 with an error of the VMM in its high half, and nothing of firmware in the low one. */
const VMM = { INVALID_LEN: 1n << 32n, BUSY: 2n << 32n } as const;
/** What the driver presets: firmware was not asked (SEV_RET_NO_FW_CALL). */
const NO_FW_CALL = 0xffffffffn;
const PAGE = 4096;
const VMPCKS_AT = 0x20;
const VMPCK_BYTES = 32;
const SEQUENCES_AT = 0xa0;
const TAG_BYTES = 16;
const IV_BYTES = 12;
const RETRY_MS = 2000;
const TIMEOUT_MS = 60_000;
const MAX_SEQUENCE = 0xffff_ffff;
/** SEV_FW_BLOB_MAX_SIZE */
const MAX_CERTIFICATES = 0x4000;
const RESPONSE_BYTES = { REPORT: 4000, KEY: 64 } as const;

/** Arguments of the three ioctls. `exitInfo2` is written back, also with errors. */
export interface GuestRequest {
  /** msg_version; not 0. */
  readonly version: number;
  exitInfo2: bigint;
}

/** SNP_GET_REPORT: the payload of REPORT_REQ, 96 bytes. */
export interface ReportRequest extends GuestRequest {
  readonly data: Uint8Array;
}

/** SNP_GET_EXT_REPORT: `certificates` is user space's buffer; its length is certs_len. */
export interface ExtendedReportRequest extends ReportRequest {
  readonly certificates: Uint8Array | undefined;
  /** Written back: bytes that the certificates need, where the buffer was too small. */
  certificatesLength: number;
}

export interface SevGuestOptions {
  /** Which VMPCK; absent: that of the VMPL. */
  readonly vmpck?: number;
}

export class SevGuest {
  readonly #transport: GuestTransport;
  readonly #vmpck: number;
  readonly #request: SharedBuffer;
  readonly #response: SharedBuffer;
  /** snp_cmd_mutex: one message at a time. */
  #last: Promise<unknown> = Promise.resolve();

  /** Errors: EINVAL (no such key), ENODEV (the key is empty). */
  constructor(transport: GuestTransport, options: SevGuestOptions = {}) {
    this.#transport = transport;
    this.#vmpck = options.vmpck ?? transport.vmpl;
    if (!(this.#vmpck >= 0 && this.#vmpck <= 3))
      throw new LinuxError('EINVAL', `vmpck_id: got ${this.#vmpck}, want 0 to 3`);
    if (this.#isEmpty) throw new LinuxError('ENODEV', `VMPCK${this.#vmpck} is empty: no keys for this level`);
    this.#request = transport.allocateShared(1);
    this.#response = transport.allocateShared(1);
  }

  /** SNP_GET_REPORT. Returns the raw response, 4000 bytes: status, size, and the report at 0x20. Errors: see `#ask`. */
  getReport(request: ReportRequest): Promise<Uint8Array> {
    checkArguments(request, 96);
    return this.#exclusively(() =>
      this.#ask(request, GUEST_MESSAGE.REPORT_REQ, request.data, RESPONSE_BYTES.REPORT),
    );
  }

  /** SNP_GET_DERIVED_KEY. `data`: KEY_REQ, 32 bytes. Returns KEY_RSP, 64 bytes. */
  getDerivedKey(request: ReportRequest): Promise<Uint8Array> {
    checkArguments(request, 32);
    return this.#exclusively(() =>
      this.#ask(request, GUEST_MESSAGE.KEY_REQ, request.data, RESPONSE_BYTES.KEY),
    );
  }

  /**
   * SNP_GET_EXT_REPORT. Returns the raw response; the certificates are in user space's buffer. EINVAL: the buffer is larger than 16 KiB, or not whole pages. EIO
   * with `exitInfo2` 1 << 32: too small, `certificatesLength` says what is needed.
   */
  getExtendedReport(request: ExtendedReportRequest): Promise<Uint8Array> {
    checkArguments(request, 96);
    const wanted = request.certificates?.length ?? 0;
    if (wanted > MAX_CERTIFICATES || wanted % PAGE !== 0)
      throw new LinuxError(
        'EINVAL',
        `certs_len: got ${wanted}, want whole pages, at most ${MAX_CERTIFICATES}`,
      );
    return this.#exclusively(async () => {
      const pages = wanted / PAGE;
      const buffer = pages === 0 ? undefined : this.#transport.allocateShared(pages);
      const extra = { buffer, pages };
      try {
        const response = await this.#ask(
          request,
          GUEST_MESSAGE.REPORT_REQ,
          request.data,
          RESPONSE_BYTES.REPORT,
          extra,
        );
        if (buffer !== undefined) request.certificates!.set(buffer.bytes);
        return response;
      } finally {
        if (request.exitInfo2 >> 32n === VMM.INVALID_LEN >> 32n)
          request.certificatesLength = extra.pages * PAGE;
        if (buffer !== undefined) this.#transport.freeShared(buffer);
      }
    });
  }

  /** Closes the device: gives the shared pages back. */
  close(): void {
    this.#transport.freeShared(this.#request);
    this.#transport.freeShared(this.#response);
  }

  #exclusively<T>(work: () => Promise<T>): Promise<T> {
    const done = this.#last.then(work, work);
    this.#last = done.catch(() => {});
    return done;
  }

  /**
   * snp_send_guest_request. Errors: ENOTTY (the key is gone), EIO (sequence numbers used up; host or firmware refused), EBADMSG (the answer is not what was asked),
   * ETIMEDOUT (busy for a minute). All but the first few make the key unusable.
   */
  async #ask(
    call: GuestRequest,
    type: number,
    payload: Uint8Array,
    answerBytes: number,
    certificates?: { buffer: SharedBuffer | undefined; pages: number },
  ): Promise<Uint8Array> {
    call.exitInfo2 = NO_FW_CALL;
    if (this.#isEmpty) throw new LinuxError('ENOTTY', `VMPCK${this.#vmpck} is disabled`);
    const sequence = this.#nextSequence();
    if (sequence === 0) throw new LinuxError('EIO', `VMPCK${this.#vmpck}: sequence numbers are used up`);
    const key = this.#key.slice();
    this.#response.bytes.fill(0);
    this.#request.bytes.fill(0);
    this.#request.bytes.set(
      seal(key, { sequence, type, version: call.version, vmpck: this.#vmpck, payload }),
    );
    try {
      const tooSmall = await this.#send(call, certificates);
      const want = { sequence: sequence + 1, type: type + 1, version: call.version, answerBytes };
      const answer = open(key, this.#response.bytes, want);
      this.#sequence = sequence + 1;
      if (tooSmall)
        throw new LinuxError('EIO', 'SNP_GET_EXT_REPORT: the buffer for certificates is too small');
      return answer;
    } catch (error) {
      const handled = error instanceof LinuxError && this.#sequence === sequence + 1;
      // Whether firmware has used the sequence number is unknown: the key must never seal another message with it.
      if (!handled) this.#disable();
      throw error;
    } finally {
      key.fill(0);
    }
  }

  /** __handle_guest_request: again while the host is busy. True: the certificates did not fit, and a plain request has used up the sequence number. */
  async #send(
    call: GuestRequest,
    certificates: { buffer: SharedBuffer | undefined; pages: number } | undefined,
  ): Promise<boolean> {
    const transport = this.#transport;
    const start = transport.now();
    let extended = certificates !== undefined;
    let tooSmall = false;
    for (;;) {
      let exitInfo2: bigint;
      if (extended) {
        const answer = await transport.extendedRequest(this.#request, this.#response, {
          buffer: certificates!.buffer,
          pages: certificates!.pages,
        });
        exitInfo2 = answer.exitInfo2;
        if (exitInfo2 === VMM.INVALID_LEN) {
          // Firmware has not seen the message: a plain request keeps its counter and ours in step.
          certificates!.pages = answer.pages;
          extended = false;
          tooSmall = true;
          continue;
        }
      } else exitInfo2 = await transport.request(this.#request, this.#response);
      if (exitInfo2 === VMM.BUSY) {
        if (transport.now() - start > TIMEOUT_MS) {
          call.exitInfo2 = exitInfo2;
          throw new LinuxError('ETIMEDOUT', 'the host was busy for 60 s');
        }
        await transport.sleep(RETRY_MS);
        continue;
      }
      call.exitInfo2 = tooSmall ? VMM.INVALID_LEN : exitInfo2;
      if (exitInfo2 !== 0n)
        throw new LinuxError('EIO', `guest request failed: SW_EXITINFO2 0x${exitInfo2.toString(16)}`);
      return tooSmall;
    }
  }

  get #key(): Uint8Array {
    const at = VMPCKS_AT + VMPCK_BYTES * this.#vmpck;
    return this.#transport.secrets.subarray(at, at + VMPCK_BYTES);
  }
  get #isEmpty(): boolean {
    return this.#key.every((byte) => byte === 0);
  }
  #disable(): void {
    this.#key.fill(0);
  }

  /** The last sequence number that was used, as the secrets page has it. */
  get #sequence(): number {
    return this.#sequenceView.getUint32(SEQUENCES_AT + 4 * this.#vmpck, true);
  }
  set #sequence(value: number) {
    this.#sequenceView.setUint32(SEQUENCES_AT + 4 * this.#vmpck, value, true);
  }
  get #sequenceView(): DataView {
    const { secrets } = this.#transport;
    return new DataView(secrets.buffer, secrets.byteOffset, secrets.byteLength);
  }

  /** 0: there is none left, since the answer's number would not fit either. */
  #nextSequence(): number {
    const next = this.#sequence + 1;
    return next >= MAX_SEQUENCE ? 0 : next;
  }
}

function checkArguments({ version, data }: ReportRequest, bytes: number): void {
  if (version === 0) throw new LinuxError('EINVAL', 'msg_version: got 0');
  if (data.length !== bytes)
    throw new LinuxError('EINVAL', `req_data: got ${data.length} bytes, want ${bytes}`);
}

function ivOf(sequence: number): Uint8Array {
  const iv = new Uint8Array(IV_BYTES);
  new DataView(iv.buffer).setBigUint64(0, BigInt(sequence), true);
  return iv;
}

/** A message: header and sealed payload. */
function seal(
  key: Uint8Array,
  message: { sequence: number; type: number; version: number; vmpck: number; payload: Uint8Array },
): Uint8Array {
  const { sequence, type, version, vmpck, payload } = message;
  const bytes = new Uint8Array(GUEST_MESSAGE_HEADER_SIZE + payload.length);
  bytes.set(
    guestMessageHeader.encode({
      sequence: BigInt(sequence),
      algo: GUEST_MESSAGE_ALGO_AES_256_GCM,
      headerVersion: GUEST_MESSAGE_HEADER_VERSION,
      headerSize: GUEST_MESSAGE_HEADER_SIZE,
      type,
      version,
      size: payload.length,
      vmpck,
    }),
  );
  const cipher = createCipheriv('aes-256-gcm', key, ivOf(sequence));
  cipher.setAAD(bytes.subarray(GUEST_MESSAGE_AAD_OFFSET, GUEST_MESSAGE_HEADER_SIZE));
  bytes.set(cipher.update(payload), GUEST_MESSAGE_HEADER_SIZE);
  cipher.final();
  bytes.set(cipher.getAuthTag(), 0);
  return bytes;
}

/** The payload of an answer, filled up to `answerBytes`. EBADMSG: it is not the answer, or not firmware's. */
function open(
  key: Uint8Array,
  page: Uint8Array,
  want: { sequence: number; type: number; version: number; answerBytes: number },
): Uint8Array {
  // The page is shared: whoever looks at it twice may see two things.
  const bytes = page.slice();
  const header = guestMessageHeader.decode(bytes.subarray(0, GUEST_MESSAGE_HEADER_SIZE));
  const wrong = (field: string, got: number | bigint, wanted: number | bigint): LinuxError =>
    new LinuxError('EBADMSG', `answer of firmware: ${field}: got ${got}, want ${wanted}`);
  if (header.sequence !== BigInt(want.sequence)) throw wrong('msg_seqno', header.sequence, want.sequence);
  if (header.type !== want.type) throw wrong('msg_type', header.type, want.type);
  if (header.version !== want.version) throw wrong('msg_version', header.version, want.version);
  if (header.size > want.answerBytes) throw wrong('msg_sz', header.size, want.answerBytes);
  const decipher = createDecipheriv('aes-256-gcm', key, ivOf(want.sequence));
  decipher.setAAD(bytes.subarray(GUEST_MESSAGE_AAD_OFFSET, GUEST_MESSAGE_HEADER_SIZE));
  decipher.setAuthTag(bytes.subarray(0, TAG_BYTES));
  const answer = new Uint8Array(want.answerBytes);
  answer.set(
    decipher.update(bytes.subarray(GUEST_MESSAGE_HEADER_SIZE, GUEST_MESSAGE_HEADER_SIZE + header.size)),
  );
  try {
    decipher.final();
  } catch {
    throw new LinuxError('EBADMSG', 'answer of firmware: the authentication tag does not match');
  }
  return answer;
}
