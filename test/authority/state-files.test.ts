/** A state directory in which a file is damaged, or another's: refused by the file's name and the field's. */
import { generateKeyPairSync } from 'node:crypto';
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { parseCrl } from '../../src/attest/index.ts';
import { Authority } from '../../src/authority/authority.ts';
import { SeededKeeper } from '../../src/authority/keeper.ts';

const folder = mkdtempSync(join(tmpdir(), 'softcvm-damage-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** A whole directory; its root keys are public ones, which need not be searched for. */
const whole = join(folder, 'whole');
const keeper = new SeededKeeper(7);
const KINDS = ['ARK', 'ASK', 'ASVK'] as const;
mkdirSync(join(whole, 'roots'), { recursive: true });
for (const product of ['Milan', 'Genoa'] as const) {
  for (const kind of KINDS) {
    const key = await keeper.rootKey(product, kind);
    writeFileSync(join(whole, `roots/${product}-${kind}.pem`), key.export({ format: 'pem', type: 'pkcs8' }));
  }
}
const first = Authority.stored(whole);
const chip = first.chip('milan');
await first.certificateTable(chip);
await first.certificateTable(chip, 'VLEK');
await first.certificateTable(first.chip('genoa'));
const CHIP = `chips/${readdirSync(join(whole, 'chips')).find((name) => name.startsWith('milan'))}`;
const record = JSON.parse(readFileSync(join(whole, CHIP), 'utf8'));

let copies = 0;
/** A copy of the whole directory with other bytes in one file; undefined: without it. */
function copied(file: string, bytes: Uint8Array | string | undefined): string {
  const path = join(folder, String(copies++));
  cpSync(whole, path, { recursive: true });
  rmSync(join(path, file), { force: true });
  if (bytes !== undefined) writeFileSync(join(path, file), bytes);
  return path;
}

/** Such a copy, opened. */
function damaged(
  file: string,
  bytes: Uint8Array | string | undefined,
): { authority: Authority; path: string } {
  const path = copied(file, bytes);
  return { authority: Authority.stored(path), path };
}

/** All that an authority can be asked for of a Milan. */
async function use(authority: Authority): Promise<void> {
  const [milan] = authority.chips().filter(({ generation }) => generation === 'milan');
  await authority.certificateTable(milan!);
  await authority.certificateTable(milan!, 'VLEK');
}

const refused = async (
  file: string,
  bytes: Uint8Array | string | undefined,
  message: string,
): Promise<void> => {
  const { authority, path } = damaged(file, bytes);
  await expect(use(authority)).rejects.toMatchObject({
    name: 'StateError',
    message: `${join(path, file)}: ${message}`,
  });
};

/** As above, and nobody gets as far as to ask for anything. */
const refusedAtOnce = (file: string, bytes: string, message: string): void => {
  const path = copied(file, bytes);
  expect(() => Authority.stored(path)).toThrow(
    expect.objectContaining({ name: 'StateError', message: `${join(path, file)}: ${message}` }),
  );
};

const kept = (file: string): Buffer => readFileSync(join(whole, file));
const flipped = (bytes: Buffer, at: number): Uint8Array => bytes.with(at, bytes.at(at)! ^ 1);

describe('a state directory', () => {
  it('that is whole is used again', async () => {
    const { authority, path } = damaged('absent', undefined);
    await use(authority);
    expect(await authority.ark('Milan')).toEqual(kept('certificates/Milan-ARK.der'));
    expect(readdirSync(path)).toEqual(readdirSync(whole));
  });

  it.each(KINDS)('with an %s that is emptied, cut, longer, changed or another’s', async (kind) => {
    const file = `certificates/Milan-${kind}.der`;
    const bytes = kept(file);
    const none = (length: number): string =>
      `certificate: got ${length} bytes that are none, want one in DER`;
    await refused(file, '', none(0));
    await refused(file, bytes.subarray(0, 40), none(40));
    await refused(file, bytes.subarray(0, -1), none(bytes.length - 1));
    await refused(file, Buffer.concat([bytes, Buffer.of(0)]), none(bytes.length + 1));
    const notOurs = "signature: got a wrong one, want one by the ARK's private key in roots";
    await refused(file, flipped(bytes, -1), notOurs);
    await refused(file, flipped(bytes, bytes.indexOf('Santa Clara')), notOurs);
    const another = 'public key: got another, want the one of the private key in roots';
    await refused(file, kept(`certificates/Genoa-${kind === 'ASVK' ? 'ARK' : kind}.der`), another);
  });

  it('with a certificate that is missing makes it anew', async () => {
    const { authority } = damaged('certificates/Milan-ASK.der', undefined);
    await use(authority);
  });

  it.each(KINDS)('with a private key of an %s that is emptied, cut, missing or another’s', async (kind) => {
    const file = `roots/Milan-${kind}.pem`;
    const bytes = kept(file);
    const none = (length: number): string =>
      `private key: got ${length} bytes that are none, want one, PKCS #8 in PEM`;
    await refused(file, '', none(0));
    await refused(file, bytes.subarray(0, 40), none(40));
    await refused(file, undefined, `got no file, want the private key of certificates/Milan-${kind}.der`);
    const small = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;
    await refused(
      file,
      small.export({ format: 'pem', type: 'pkcs8' }),
      'private key: got rsa of 2048 bits, exponent 65537, want rsa of 4096 bits, exponent 65537',
    );
    const { authority, path } = damaged(file, kept('roots/Genoa-ASK.pem'));
    await expect(use(authority)).rejects.toMatchObject({
      name: 'StateError',
      message: `${join(path, `certificates/Milan-${kind}.der`)}: public key: got another, want the one of the private key in roots`,
    });
  });

  it.each([
    [0, ''],
    [47, 'x'.repeat(47)],
    [49, 'x'.repeat(49)],
  ])('with a secret of %i bytes', (length, bytes) => {
    refusedAtOnce('secret', bytes, `got ${length} bytes, want 48`);
  });

  it.each([
    ['{', 'file: got "{", want JSON'],
    ['', 'file: got "", want JSON'],
    ['null', 'file: got null, want an object'],
    [JSON.stringify({ ...record, generation: 'rome' }), 'generation: got "rome", want milan, genoa or turin'],
    [JSON.stringify({ ...record, secret: 'ab' }), 'secret: got "ab", want 48 bytes in hex'],
    [JSON.stringify({ ...record, id: undefined }), 'id: got nothing, want 64 bytes in hex'],
    [JSON.stringify({ ...record, reported: 5 }), 'reported: got 5, want a TCB_VERSION in hex'],
    [
      JSON.stringify({ ...record, current: '0xdb18000000010004' }),
      'current: got "0xdb18000000010004", want reserved bytes that are zero',
    ],
    [
      JSON.stringify({ ...record, committed: '0xdc18000000000004' }),
      'committed: got "0xdc18000000000004", want at most what is current',
    ],
    [
      JSON.stringify({ ...record, reported: '0xdc18000000000004' }),
      'reported: got "0xdc18000000000004", want at most what is committed',
    ],
    [
      JSON.stringify({ ...record, launch: '0x1' }),
      'launch: got "0x1", want no field but generation, secret, id, current, committed, reported',
    ],
  ])('with a chip that is %s', (text, message) => {
    refusedAtOnce(CHIP, text, message);
  });

  it('with a chip under another’s name', () => {
    const other = `chips/milan-${'ab'.repeat(64)}.json`;
    const cut = `"${record.id}"`.slice(0, 40);
    refusedAtOnce(other, kept(CHIP).toString(), `id: got ${cut}..., want that of the file's name`);
  });

  const at = '2026-02-01T00:00:00.000Z';
  it.each([
    ['{', 'file: got "{", want JSON'],
    ['[]', 'file: got [], want an object'],
    ['{"Rome":[]}', 'generation: got Rome, want Milan, Genoa, Turin'],
    ['{"Milan":{}}', 'Milan: got {}, want an array'],
    ['{"Genoa":[7]}', 'Genoa[0]: got 7, want an object'],
    [`{"Milan":[{"at":"${at}"}]}`, 'Milan[0].serial: got nothing, want a serial number, such as 65537'],
    [
      `{"Milan":[{"serial":9,"at":"${at}"},{"serial":"010001","at":"${at}"}]}`,
      'Milan[1].serial: got "010001", want a serial number, such as 65537',
    ],
    [
      `{"Milan":[{"serial":-1,"at":"${at}"}]}`,
      'Milan[0].serial: got -1, want a serial number, such as 65537',
    ],
    [
      `{"Milan":[{"serial":1.5,"at":"${at}"}]}`,
      'Milan[0].serial: got 1.5, want a serial number, such as 65537',
    ],
    [
      '{"Milan":[{"serial":65537}]}',
      'Milan[0].at: got nothing, want a time such as "2026-11-21T08:00:00.000Z"',
    ],
    [
      '{"Milan":[{"serial":65537,"at":"2026-02-30"}]}',
      'Milan[0].at: got "2026-02-30", want a time such as "2026-11-21T08:00:00.000Z"',
    ],
    [
      `{"Milan":[{"serial":65537,"at":"${at}","until":"2027"}]}`,
      'Milan[0].until: got "2027", want no field but serial, at',
    ],
    ['{"Milan":[{"Serial":65537}]}', 'Milan[0].Serial: got 65537, want no field but serial, at'],
  ])('with revocations that are %s', (text, message) => {
    refusedAtOnce('revoked.json', text, message);
  });

  it('with revocations that are as they should be revokes', async () => {
    const { authority } = damaged('revoked.json', `{"Milan":[{"serial":65537,"at":"${at}"}]}`);
    const { revoked, number } = parseCrl(await authority.crl('Milan'));
    expect([...revoked]).toEqual([['010001', new Date(at)]]);
    expect(number).toBe('01');
  });

  it.each([
    ['a note', 'notes.txt', 'notes.txt', 'roots, certificates, chips, secret or revoked.json'],
    ['a misspelt list', 'revoke.json', 'revoke.json', 'roots, certificates, chips, secret or revoked.json'],
    ['a key of another name', 'roots/milan-ark.pem', 'milan-ark.pem', 'a name such as Milan-ARK.pem'],
    ['a copy of a key', 'roots/Milan-ARK.pem.old', 'Milan-ARK.pem.old', 'a name such as Milan-ARK.pem'],
    ['a key of none', 'roots/Milan-VCEK.pem', 'Milan-VCEK.pem', 'a name such as Milan-ARK.pem'],
    ['a certificate in PEM', 'certificates/Milan-ARK.pem', 'Milan-ARK.pem', 'a name such as Milan-ARK.der'],
    ['a chip in capitals', `chips/MILAN-00.json`, 'MILAN-00.json', 'a name such as milan-HWID.json'],
    ['a chip without an id', 'chips/milan-.json', 'milan-.json', 'a name such as milan-HWID.json'],
  ])('with %s that it would never look at', (_what, file, name, want) => {
    const path = join(folder, String(copies++));
    cpSync(whole, path, { recursive: true });
    writeFileSync(join(path, file), 'x');
    expect(() => Authority.stored(path)).toThrow(
      expect.objectContaining({
        name: 'StateError',
        message: `${join(path, file)}: name: got ${name}, want ${want}`,
      }),
    );
  });

  it('that is somebody else’s is left as it is', () => {
    const path = join(folder, String(copies++));
    mkdirSync(join(path, 'src'), { recursive: true });
    writeFileSync(join(path, 'README.md'), 'x');
    const names = readdirSync(path);
    expect(() => Authority.stored(path)).toThrow(
      `${join(path, 'README.md')}: name: got README.md, want roots, certificates, chips, secret or revoked.json`,
    );
    expect(readdirSync(path)).toEqual(names);
  });

  it('in whose chips a stranger lies is left as it is', () => {
    const path = join(folder, String(copies++));
    mkdirSync(join(path, 'chips'), { recursive: true });
    writeFileSync(join(path, 'chips/snack.txt'), 'x');
    expect(() => Authority.stored(path)).toThrow('name: got snack.txt, want a name such as milan-HWID.json');
    expect(readdirSync(path)).toEqual(['chips']);
  });

  it('with files that editors and desktops leave is used all the same', async () => {
    const path = join(folder, String(copies++));
    cpSync(whole, path, { recursive: true });
    for (const file of ['revoked.json~', '.DS_Store', 'roots/.Milan-ARK.pem.swp', 'chips/milan-00.json~'])
      writeFileSync(join(path, file), 'x');
    const authority = Authority.stored(path);
    await use(authority);
    expect(authority.chips()).toHaveLength(2);
  });

  it('with a folder in a file’s place, or no room to write', async () => {
    const { authority, path } = damaged('secret', undefined);
    mkdirSync(join(path, 'secret'));
    await expect(use(authority)).rejects.toMatchObject({
      name: 'StateError',
      message: `${join(path, 'secret')}: got EISDIR, want a file that can be read`,
    });
    const without = damaged('certificates/Milan-ASK.der', undefined);
    rmSync(join(without.path, 'certificates'), { recursive: true });
    symlinkSync('absent', join(without.path, 'certificates'));
    await expect(without.authority.ark('Milan')).rejects.toMatchObject({
      name: 'StateError',
      message: `${join(without.path, 'certificates/Milan-ARK.der')}: got ENOENT, want to write it`,
    });
  });
});
