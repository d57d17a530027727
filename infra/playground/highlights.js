// Which words of a passage the answer took, and which the question asked for.

const WORD = /[\p{L}\p{N}$]+(?:[’'.-][\p{L}\p{N}]+)*/gu
const COMMON = new Set('about after also and any are because been can could did does for from had has have how into its many more most much not one only other our out over same should some such than that the their them then there these they this those use was were what when where which while who why will with would you your'.split(' '))
const RUN = 3 // words in a row that the answer shares are its own, fewer are chance

/** The passage in pieces `[text, isMarked]`, whose texts are all of it. */
export function highlights(passage, question, answer) {
  const words = [...passage.matchAll(WORD)]
  const lower = words.map(([word]) => word.toLowerCase())
  const asked = new Set(wordsOf(question).filter((word) => word.length > 2 && !COMMON.has(word)))
  const said = runsOf(wordsOf(answer))
  const isMarked = lower.map((word) => asked.has(word))
  for (let at = 0; at + RUN <= lower.length; at++) {
    if (said.has(lower.slice(at, at + RUN).join(' '))) isMarked.fill(true, at, at + RUN)
  }
  return pieces(passage, words, isMarked)
}

const wordsOf = (text) => [...text.matchAll(WORD)].map(([word]) => word.toLowerCase())

const runsOf = (words) => new Set(words.map((_, at) => words.slice(at, at + RUN).join(' ')))

function pieces(passage, words, isMarked) {
  const found = []
  let from = 0
  for (let at = 0; at < words.length; at++) {
    if (!isMarked[at]) continue
    const start = words[at].index
    while (isMarked[at + 1]) at++
    const end = words[at].index + words[at][0].length
    found.push([passage.slice(from, start), false], [passage.slice(start, end), true])
    from = end
  }
  return [...found, [passage.slice(from), false]].filter(([text]) => text)
}
